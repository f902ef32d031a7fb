"""From tidy records to tables: a run computed by hand, an independent slow path, and what missing records do."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2, rankdata

from longgame.audit.store import records_table
from longgame.errors import DataError
from longgame.metrics import matrix
from longgame.metrics.catalog import METRICS
from longgame.metrics.longhorizon import adaptation_auc
from longgame.metrics.scorecard import Scorecard
from longgame.metrics.stats import unit_effect
from longgame.recipe import MetricSpec
from longgame.seeding import generator

NAN, INF = float("nan"), float("inf")
TASKS, OOD = ("a", "b"), ("o",)
TOKENS = (0, 100, 200)

# Per trial: R (columns a, b, o; the OOD set is scored at the end only) and the common probe's curve on b after stage 1.
HAND = {
    ("random", 0): ([[10, 20, NAN], [50, 30, NAN], [48, 60, 40]], [30, 50, 60]),
    ("random", 1): ([[12, 22, NAN], [52, 30, NAN], [50, 62, 42]], [30, 50, 62]),
    ("loss", 0): ([[10, 20, NAN], [60, 26, NAN], [40, 66, 30]], [26, 40, 50]),
    ("loss", 1): ([[12, 22, NAN], [64, 24, NAN], [42, 70, 30]], [24, 40, 48]),
}


def who(selector, seed):
    return {"trial": f"{selector}-s{seed}", "selector": selector, "seed": seed}


def score_rows(selector, seed, R, scorer="token_accuracy", sub_skill="", columns=(*TASKS, *OOD)):
    return [
        who(selector, seed)
        | {"kind": "score", "stage": stage, "task": task, "task_kind": "ood" if task in OOD else "stage"}
        | {"sub_skill": sub_skill, "scorer": scorer, "value": R[stage][j], "unit": "points"}
        for stage in range(len(R))
        for j, task in enumerate(columns)
        if not np.isnan(R[stage][j])
    ]


def curve_rows(selector, seed, curve, probe="common", scorer="token_accuracy", stage=1, task="b"):
    return [
        who(selector, seed)
        | {"kind": "curve", "stage": stage, "task": task, "scorer": scorer, "probe": probe, "step": step}
        | {"tokens": tokens, "value": value}
        for step, (tokens, value) in enumerate(zip(TOKENS, curve, strict=True))
    ]


def hand_rows(probe="common"):
    return [
        row
        for (selector, seed), (R, curve) in HAND.items()
        for row in score_rows(selector, seed, R) + curve_rows(selector, seed, curve, probe)
    ]


def build(rows, tasks=TASKS, ood=OOD, primary=None, spec=None, threshold=0.9, reference="random"):
    results = rows if isinstance(rows, pd.DataFrame) else records_table(rows)
    primary = primary or dict.fromkeys((*tasks, *ood), "token_accuracy")
    return Scorecard.build(
        results,
        tasks=list(tasks),
        ood=list(ood),
        primary=primary,
        metric_spec=spec or MetricSpec(),
        threshold=threshold,
        reference=reference,
    )


def value(card, selector, seed, metric, view="primary"):
    frame = card.per_trial
    found = frame[
        (frame["selector"] == selector)
        & (frame["seed"] == seed)
        & (frame["metric"] == metric)
        & (frame["view"] == view)
    ]
    assert len(found) == 1
    return found["value"].item()


def summary(card, selector, metric, view="primary"):
    frame = card.summary
    found = frame[(frame["selector"] == selector) & (frame["metric"] == metric) & (frame["view"] == view)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def card():
    return build(hand_rows())


@pytest.mark.parametrize(
    ("metric", "random", "loss"),
    [
        ("current", (55, 57), (63, 67)),  # (50+60)/2, (52+62)/2; (60+66)/2, (64+70)/2
        ("immediate_gain", (35, 36), (45, 49)),  # (40+30)/2, (40+32)/2; (50+40)/2, (52+46)/2
        ("final", (54, 56), (53, 56)),
        ("forgetting", (2, 2), (20, 22)),
        ("forward_transfer", (10, 8), (6, 2)),  # R[1,b] − R[0,b]
        ("backward_transfer", (-2, -2), (-20, -22)),
        # half the distance between two scores; best seen: 64 of a, 70 of b
        ("imbalance", (abs(48 / 64 - 60 / 70) / 2, abs(50 / 64 - 62 / 70) / 2), (0.158928571, abs(42 / 64 - 1) / 2)),
        ("imbalance_gain", (1, 1), (8, 9)),  # (40 − 38)/2, (46 − 30)/2, (48 − 30)/2
        ("imbalance_raw", (6, 6), (13, 14)),
        ("worst_task", (48, 50), (40, 42)),
        ("ood", (40, 42), (30, 30)),
        # (40 + 55)/2, (40 + 56)/2; (33 + 45)/2, (32 + 44)/2; all /100
        ("auc_common", (0.475, 0.48), (0.39, 0.38)),
        ("auc_start_common", (0.30, 0.30), (0.26, 0.24)),
        ("auc_gain_common", (0.175, 0.18), (0.13, 0.14)),
        # threshold .9 · (60+62+50+48)/4 = 49.5: 100·19.5/20; loss: 100 + 100·9.5/10, and 48 never reaches it
        ("tokens_to_threshold_common", (97.5, 97.5), (195, INF)),
        ("tokens_ratio_common", (1, 1), (2, INF)),
        ("threshold_reached_common", (1, 1), (1, 0)),
        # (.54+.475−.02+.40)/3, (.56+.48−.02+.42)/3; (.53+.39−.20+.30)/3, (.56+.38−.22+.30)/3
        ("long_horizon", (0.465, 0.48), (0.34, 0.34)),
        # loss first by current score and by gain, second in the long run: (2−1)/(2−1)
        ("myopia_gap", (-1, -1), (1, 1)),
        ("myopia_gap_gain", (-1, -1), (1, 1)),
    ],
)
def test_every_metric_of_a_trial_equals_its_hand_value(card, metric, random, loss):
    found = [value(card, selector, seed, metric) for selector in ("random", "loss") for seed in (0, 1)]
    assert found == pytest.approx([*random, *loss])


def test_summary_compares_with_the_reference_paired_by_seed(card):
    row = summary(card, "loss", "current")
    # values 63, 67: mean 65, sd √8; differences 8, 10: mean 9, sd √2, error 1, t_{.975, 1} = 12.7062047
    assert (row["mean"], row["n"], row["diff_n"]) == (65, 2, 2)
    assert row["sd"] == pytest.approx(np.sqrt(8))
    assert (row["diff_vs_reference"], row["ci_low"], row["ci_high"]) == pytest.approx(
        (9, 9 - 12.7062047, 9 + 12.7062047)
    )
    # one degree of freedom: p = (2/π)·atan(error/mean)
    assert row["p"] == pytest.approx(2 / np.pi * np.arctan(1 / 9))
    assert row["p_permutation"] == 0.5
    assert row["p_holm"] == row["p"]  # a family of one
    assert np.isnan(summary(card, "random", "current")["diff_vs_reference"])


def test_a_threshold_not_reached_stays_visible_in_the_summary(card):
    row = summary(card, "loss", "tokens_to_threshold_common")
    assert (row["mean"], row["n"]) == (INF, 2)
    assert np.isnan(row["p"])


def test_summary_tells_what_the_seeds_could_have_shown(card):
    row = summary(card, "loss", "current")
    # differences 8, 10 (mean 9, sd √2) over two seeds; d(2) = 11.5499 sd at 5 % and 80 % power, by quadrature
    assert row["mde"] == pytest.approx(11.5499 * np.sqrt(2), rel=1e-4)
    assert row["seeds_needed"] == 3  # 9/√2 = 6.36 sd; three seeds show 3.26 sd, two 11.55 sd
    assert summary(card, "random", "current")[["mde", "seeds_needed"]].isna().all()
    assert summary(card, "loss", "tokens_to_threshold_common")[["mde", "seeds_needed"]].isna().all()
    # final: differences −1 and 0; the ratio √½ needs 18 seeds; ood: −10 and −12
    assert summary(card, "loss", "final")["seeds_needed"] == 18


def test_larger_family_raises_mde_by_holm():
    rows = hand_rows()
    for name in ("lhas", "quality"):
        rows += [
            r | who(name, r["seed"]) | ({"value": r["value"] + 1} if r["kind"] == "score" else {})
            for r in hand_rows()
            if r["selector"] == "loss"
        ]
    one, three = (summary(build(each), "loss", "current")["mde"] for each in (hand_rows(), rows))
    assert three / one == pytest.approx(unit_effect(2, 0.05 / 3) / unit_effect(2, 0.05))


def test_mde_pools_the_spread_of_the_selectors_and_has_a_range():
    """Differences 8 and 10 of loss (sd √2), 0 and 4 of lhas (sd √8): pooled sd √5, two comparisons, two seeds."""
    rows = hand_rows()
    for seed, shift in ((0, 0), (1, 4)):
        R, curve = HAND["random", seed]
        raised = [[cell + shift * (stage > 0) for cell in row] for stage, row in enumerate(R)]
        rows += score_rows("lhas", seed, raised) + curve_rows("lhas", seed, curve)
    card = build(rows)
    unit = unit_effect(2, 0.05 / 2)
    for name, difference in (("loss", 9), ("lhas", 2)):
        row = summary(card, name, "current")
        assert row["diff_vs_reference"] == pytest.approx(difference)
        assert row["mde"] == pytest.approx(np.sqrt(5) * unit)
        freedom = 2 / 1.25  # two selectors that share their reference
        for end, tail in (("mde_low", 0.95), ("mde_high", 0.05)):
            expected = np.sqrt(5 * freedom / chi2.ppf(tail, freedom)) * unit
            assert row[end] == pytest.approx(expected if expected <= 100 else INF)


def test_an_mde_beyond_the_scale_cannot_be_told():
    rows = [
        r | {"value": r["value"] + 30 * r["seed"] * (r["selector"] == "loss") * (r["stage"] > 0)} for r in hand_rows()
    ]
    row = summary(build(rows), "loss", "current")
    assert row["diff_n"] == 2
    assert unit_effect(2) * row["diff_sd"] > 100  # points
    assert row[["mde", "mde_low", "mde_high"]].isna().all()
    assert row["seeds_needed"] >= 2


def test_bootstrap_columns_are_optional(card):
    assert "boot_low" not in card.summary
    found = build(hand_rows(), spec=MetricSpec(bootstrap=2000))
    row = summary(found, "loss", "current")
    assert (row["boot_low"], row["boot_high"]) == (8, 10)  # the extremes of two seeds, each drawn twice with 1/4
    assert summary(found, "loss", "tokens_to_threshold_common")[["boot_low", "boot_high"]].isna().all()
    pd.testing.assert_frame_equal(found.summary.drop(columns=["boot_low", "boot_high"]), card.summary)


def test_score_matrix_is_returned_as_written(card):
    np.testing.assert_array_equal(card.R("primary", "loss", 1), HAND["loss", 1][0])
    with pytest.raises(DataError, match="no trial of selector 'loss' with seed 7"):
        card.R("primary", "loss", 7)
    with pytest.raises(DataError, match="unknown view 'primry'. Did you mean 'primary'"):
        card.R("primry", "loss", 1)


def test_gap_verdict_sensitivity_and_thresholds_of_the_hand_run(card):
    primary = card.set_gap[card.set_gap["view"] == "primary"].set_index("immediate")
    assert primary["gap"].to_dict() == {"current": 1.0, "immediate_gain": 1.0}
    assert set(primary["seeds"]) == {2}
    assert primary["seed_gap"].tolist() == [1.0, 1.0]
    assert primary[["ci_low", "ci_high"]].isna().all(axis=None)  # both seeds have the same gap
    said = card.verdicts[card.verdicts["view"] == "primary"]
    assert said["selector"].tolist() == ["loss"]
    assert said["verdict"].item() == "not enough seeds"
    share = card.sensitivity[card.sensitivity["view"] == "primary"].set_index("selector")["share"]
    assert share.to_dict() == {"random": 1.0, "loss": 0.0}
    row = card.thresholds[(card.thresholds["view"] == "primary") & (card.thresholds["probe"] == "common")]
    assert row[["stage", "task", "points"]].to_numpy().tolist() == [[1, "b", 49.5]]


def test_per_stage_tables_hold_each_stage(card):
    frame = card.per_stage
    loss = frame[(frame["trial"] == "loss-s0") & (frame["view"] == "primary")]
    found = {(row.metric, row.stage): row.value for row in loss.itertuples()}
    assert (found["current", 1], found["current", 2]) == (60, 66)
    assert (found["immediate_gain", 1], found["immediate_gain", 2]) == (50, 40)
    assert found["forgetting", 1] == 20
    assert ("forgetting", 2) not in found
    assert found["auc_common", 1] == pytest.approx(0.39)
    by_stage = card.stage_summary
    row = by_stage[(by_stage["selector"] == "loss") & (by_stage["metric"] == "current") & (by_stage["stage"] == 1)]
    assert row[row["view"] == "primary"]["diff_vs_reference"].item() == 11  # (60−50 + 64−52)/2


def test_rows_in_another_order_give_the_same_scorecard(card):
    frame = records_table(hand_rows())
    shuffled = frame.iloc[generator(0, "rows").permutation(len(frame))].reset_index(drop=True)
    again = build(shuffled)
    for table in ("per_trial", "summary", "per_stage", "set_gap", "verdicts", "sensitivity", "thresholds"):
        pd.testing.assert_frame_equal(getattr(again, table), getattr(card, table))


def test_renaming_selectors_moves_their_numbers_along(card):
    swap = {"random": "loss", "loss": "random"}
    frame = records_table(hand_rows())
    swapped = build(
        frame.assign(
            selector=frame["selector"].map(swap).astype("string"),
            trial=frame["trial"].map(lambda name: f"{swap[name[:-3]]}{name[-3:]}").astype("string"),
        )
    )
    for metric in ("current", "forgetting", "long_horizon", "myopia_gap"):
        assert value(swapped, "random", 1, metric) == value(card, "loss", 1, metric)
    assert summary(swapped, "loss", "current")["diff_vs_reference"] == -9


# Sub-skills and views


def test_task_is_the_mean_of_its_sub_skills():
    rows = []
    for (selector, seed), (R, _) in HAND.items():
        R = np.array(R, dtype=float)
        rows += score_rows(selector, seed, R - 4, sub_skill="add") + score_rows(selector, seed, R + 4, sub_skill="sub")
        rows += score_rows(selector, seed, R * 0 + 99, sub_skill="")
    found = build(rows)
    np.testing.assert_allclose(found.R("primary", "loss", 0), HAND["loss", 0][0])
    table = found.sub_skills("primary", "loss", 0)
    last = table[(table["stage"] == 2) & (table["task"] == "a")]
    assert last.set_index("sub_skill")["value"].to_dict() == {"add": 36, "sub": 44}


def test_missing_sub_skill_makes_its_cell_nan():
    rows = []
    for (selector, seed), (R, _) in HAND.items():
        rows += score_rows(selector, seed, R, sub_skill="add")
        if seed == 0:  # nobody measured it with seed 1
            rows += score_rows(selector, seed, R, sub_skill="sub")
    hole = next(r for r in rows if (r["trial"], r["stage"], r["task"], r["sub_skill"]) == ("loss-s0", 1, "a", "sub"))
    found = build([r if r is not hole else r | {"value": NAN} for r in rows])
    absent = build([r for r in rows if r is not hole])
    for each in (found, absent):
        assert np.isnan(each.R("primary", "loss", 0)[1, 0])
        assert each.R("primary", "loss", 0)[2, 0] == 40
        np.testing.assert_array_equal(each.R("primary", "random", 0), HAND["random", 0][0])
        np.testing.assert_array_equal(each.R("primary", "loss", 1), HAND["loss", 1][0])
        assert np.isnan(value(each, "loss", 0, "current"))
        assert (summary(each, "loss", "current")["n"], summary(each, "loss", "current")["diff_n"]) == (1, 1)


def test_views_use_their_scorer_for_all_selectors():
    rows = hand_rows()
    for selector, seed in HAND:  # b has exact match, a and o are open-ended; it goes the other way
        R = [[NAN, 1, NAN], [NAN, 2, NAN], [NAN, 9 if selector == "random" else 5, NAN]]
        rows += score_rows(selector, seed, R, scorer="exact_match")
        rows += [
            r | {"value": NAN} for r in score_rows(selector, seed, [[1, 1, 1]] * 3, "exact_match") if r["task"] == "a"
        ]
    card = build(rows, primary={"a": "token_accuracy", "b": "exact_match", "o": "token_accuracy"})
    assert list(card.views) == ["primary", "token_accuracy", "exact_match"]
    assert value(card, "random", 0, "current", "exact_match") == 9
    assert value(card, "random", 0, "current", "token_accuracy") == 55
    assert value(card, "random", 0, "current", "primary") == (50 + 9) / 2
    assert np.isnan(value(card, "random", 0, "forgetting", "exact_match"))
    assert np.isnan(value(card, "random", 0, "long_horizon", "exact_match"))
    assert any(note.startswith("exact_match: a, o not measured") for note in card.notes)
    assert card.views["exact_match"].terms.gamma == 0


def test_a_view_without_any_measurement_is_not_shown(card):
    assert list(card.views) == ["primary", "token_accuracy"]
    pd.testing.assert_frame_equal(
        card.wide(["current", "long_horizon"], "primary"), card.wide(["current", "long_horizon"], "token_accuracy")
    )


# What is missing


def test_an_unfinished_trial_is_nan_and_never_zero():
    rows = [r for r in hand_rows() if not (r["trial"] == "loss-s1" and r["kind"] == "score" and r["stage"] == 2)]
    card = build(rows)
    for metric in ("current", "final", "forgetting", "worst_task", "ood", "long_horizon", "imbalance"):
        assert np.isnan(value(card, "loss", 1, metric))
        assert summary(card, "loss", metric)["n"] == 1
    # its seed's ranks would be among fewer selectors, so the whole seed is left out of gaps
    assert np.isnan(value(card, "random", 1, "myopia_gap"))
    assert summary(card, "random", "myopia_gap")["n"] == 1
    assert set(card.set_gap["seeds"]) == {1}


def test_long_horizon_uses_the_own_probe_with_a_note(card):
    own = build(hand_rows(probe="own"))
    assert own.views["primary"].terms.probe == "own"
    assert any("only the own probe" in note for note in own.notes)
    assert np.isnan(value(own, "loss", 0, "auc_common"))
    assert value(own, "loss", 0, "long_horizon") == pytest.approx(value(card, "loss", 0, "long_horizon"))
    assert card.views["primary"].terms.probe == "common"
    assert card.notes == ()


def test_unmeasured_term_is_left_out_with_a_note():
    rows = [r for r in hand_rows() if r["kind"] == "score" and r["task"] != "o"]
    card = build(rows, ood=())
    assert value(card, "loss", 0, "long_horizon") == pytest.approx(0.53 - 0.20)
    assert value(card, "random", 0, "long_horizon") == pytest.approx(0.54 - 0.02)
    assert len([note for note in card.notes if "AUC term out" in note]) == len(card.views)
    assert len([note for note in card.notes if "OOD term out" in note]) == len(card.views)
    assert np.isnan(value(card, "loss", 0, "ood"))


def test_reference_at_zero_tokens_keeps_ratios_finite():
    rows = [r for r in hand_rows() if r["kind"] == "score"]
    for selector, seed, curve in (
        ("random", 0, (40, 50, 60)),
        ("random", 1, (58, 60, 60)),
        ("loss", 0, (30, 45, 60)),
        ("loss", 1, (40, 50, 60)),
    ):
        rows += curve_rows(selector, seed, curve)
    card = build(rows)  # threshold .9 · 60 = 54: random 140 and 0 tokens, loss 160 and 140
    found = [value(card, name, seed, "tokens_ratio_common") for name in ("random", "loss") for seed in (0, 1)]
    assert found == pytest.approx([140 / 70, 0, 160 / 70, 140 / 70])
    assert summary(card, "random", "tokens_ratio_common")["mean"] == pytest.approx(1)


def test_one_stage_has_a_current_score_and_no_long_horizon():
    rows = [r for r in hand_rows() if r["kind"] == "score" and r["task"] == "a" and r["stage"] < 2]
    card = build(rows, tasks=("a",), ood=())
    assert value(card, "loss", 0, "current") == 60
    for metric in ("long_horizon", "forgetting", "myopia_gap", "auc_common"):
        assert np.isnan(value(card, "loss", 0, metric))
    assert any("one stage has no future" in note for note in card.notes)
    assert card.verdicts["verdict"].unique().tolist() == ["not enough seeds"]


def test_without_reference_nothing_is_compared():
    card = build(hand_rows(), reference="lhas")
    assert card.verdicts.empty
    assert card.summary["p"].isna().all()
    assert np.isnan(value(card, "loss", 0, "tokens_ratio_common"))
    assert value(card, "loss", 0, "current") == 63
    assert any("'lhas'" in note for note in card.notes)


def test_one_seed_has_means_and_no_intervals():
    card = build([r for r in hand_rows() if r["seed"] == 0])
    row = summary(card, "loss", "current")
    assert (row["mean"], row["n"], row["diff_vs_reference"]) == (63, 1, 8)
    assert row[["sd", "ci_low", "ci_high", "p", "p_holm"]].isna().all()


# Diagnostics and costs


def test_a_score_that_nobody_raises_above_the_base_is_noted():
    def exact(loss):
        gains = {"random": 0.5, "loss": loss}  # R[t,t] − R[0,t], mean over both tasks
        return [
            row
            for selector, seed in HAND
            for row in score_rows(
                selector,
                seed,
                [[20, 0, NAN], [20 + gains[selector] - 2, 0, NAN], [20, gains[selector] + 2, NAN]],
                "exact_match",
            )
        ]

    notes = [note for note in build(hand_rows() + exact(loss=0.9)).notes if "base model" in note]
    assert len(notes) == 1  # token accuracy rises
    assert notes[0].startswith("exact_match: right after the stages no selector is 1 point(s) above the base model")
    assert "(loss has the most: +0.9)" in notes[0]
    assert not [note for note in build(hand_rows() + exact(loss=1.1)).notes if "base model" in note]


def test_notes_warn_of_a_selector_whose_cut_is_a_tie():
    tied = {"kind": "diagnostic", "stage": 1, "name": "tied_share"}
    rows = [who(selector, seed) | tied | {"value": 0.99 if selector == "loss" else 0} for selector, seed in HAND]
    (note,) = build(hand_rows() + rows).notes
    assert note.startswith("loss: at stage 1, 99 % of the candidates share the score")


def test_diagnostics_are_means_and_costs_sums():
    rows = hand_rows()
    for selector, seed in HAND:
        for stage, drift in ((1, NAN), (2, 0.4)):
            rows += [
                who(selector, seed) | {"kind": "diagnostic", "stage": stage, "name": name, "value": number}
                for name, number in (("adapter_drift", drift), ("capability_entropy", float(stage)))
            ]
            if (selector, seed, stage) != ("loss", 1, 2):
                rows.append(
                    who(selector, seed) | {"kind": "cost", "stage": stage, "name": "selected_tokens", "value": 100.0}
                )
    card = build(rows)
    assert value(card, "loss", 0, "adapter_drift", view="") == 0.4
    assert value(card, "loss", 0, "capability_entropy", view="") == 1.5
    assert value(card, "loss", 0, "selected_tokens", view="") == 200
    assert np.isnan(value(card, "loss", 1, "selected_tokens", view=""))  # a stage is missing: not 100
    wide = card.wide(["current", "adapter_drift"])
    assert wide.index.tolist() == ["random", "loss"]
    assert wide.loc["loss"].tolist() == [65, 0.4]
    with pytest.raises(DataError, match="unknown metric 'curent'. Did you mean 'current'"):
        card.wide(["curent"])


def test_every_metric_of_a_card_is_in_the_catalog(card):
    assert set(card.summary["metric"]) <= set(METRICS)
    assert {name for name, metric in METRICS.items() if metric.group == "score"} == set(card.summary["metric"])


# Bad records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "bb"}, "unknown task 'bb'"),
        ({"stage": 3}, "hold stage 3; a sequence of 2 stages"),
        ({"selector": "gradient"}, "different trials have the same trial"),
        ({"trial": "loss-again"}, "different trials have the same selector and seed"),
    ],
)
def test_a_record_that_does_not_belong_is_refused(change, message):
    rows = hand_rows()
    with pytest.raises(DataError, match=message):
        build([*rows[:-1], *[r | change for r in score_rows("loss", 1, [[1, NAN, NAN]])]])


def test_a_measurement_that_stands_twice_is_refused():
    with pytest.raises(DataError, match="trial 'loss-s1' holds the score of 'a' after stage 0 twice"):
        build([*hand_rows(), *score_rows("loss", 1, [[1, NAN, NAN]])])


def test_a_curve_that_does_not_belong_is_refused():
    with pytest.raises(DataError, match=r"curve on 'a' after stage 1; .* next stage's task, 'b'"):
        build([*hand_rows(), *curve_rows("loss", 1, [1, 2, 3], probe="own", task="a")])
    with pytest.raises(DataError, match="after stage 2; a probe there is none"):
        build([*hand_rows(), *curve_rows("loss", 1, [1, 2, 3], stage=2)])
    with pytest.raises(DataError, match="unknown probe 'comon'. Did you mean 'common'"):
        build([*hand_rows(), *curve_rows("loss", 1, [1, 2, 3], probe="comon")])


def test_results_without_measurement_or_scorer_are_refused():
    with pytest.raises(DataError, match="hold no measurement"):
        build([])
    with pytest.raises(DataError, match="task 'o' has no primary scorer"):
        build(hand_rows(), primary=dict.fromkeys(TASKS, "token_accuracy"))


# Imbalance of normalized scores


def test_equal_shares_of_unequal_tasks_are_balanced():
    """The tasks stand at 30 and 60 points, each 3/4 of its best score: raw scores differ, normalized ones do not."""
    R = {
        ("random", 0): [[0, 0, NAN], [40, 0, NAN], [30, 60, 10]],
        ("loss", 0): [[0, 0, NAN], [40, 0, NAN], [20, 80, 10]],
    }
    card = build([row for (selector, seed), matrix_ in R.items() for row in score_rows(selector, seed, matrix_)])
    assert value(card, "random", 0, "imbalance") == pytest.approx(0)
    assert value(card, "random", 0, "imbalance_raw") == pytest.approx(15)
    assert value(card, "loss", 0, "imbalance") == pytest.approx((80 / 80 - 20 / 40) / 2)


def test_all_data_scores_are_what_imbalance_divides_by():
    full = build(score_rows("random", 0, [[0, 0, NAN], [50, 0, NAN], [60, 80, 10]]))
    rows = [row for (selector, seed), (R, _) in HAND.items() for row in score_rows(selector, seed, R)]
    card = Scorecard.build(
        records_table(rows),
        tasks=list(TASKS),
        ood=list(OOD),
        primary=dict.fromkeys((*TASKS, *OOD), "token_accuracy"),
        metric_spec=MetricSpec(),
        threshold=0.9,
        all_data=full,
    )
    assert value(card, "random", 0, "imbalance") == pytest.approx(abs(48 / 60 - 60 / 80) / 2)


# An independent slow path


def test_arrays_agree_with_one_trial_at_a_time_by_pandas():
    rng = generator(5, "random run")
    tasks, ood, skills = ("a", "b", "c", "d"), ("o", "p"), ("x", "y", "z")
    rows = []
    for selector, seed in itertools.product(("random", "loss", "lhas"), range(4)):
        for skill in skills:
            R = rng.uniform(0, 100, (5, 6))
            rows += score_rows(selector, seed, R, sub_skill=skill, columns=(*tasks, *ood))
        for stage, probe in itertools.product((1, 2, 3), ("common", "own")):
            rows += curve_rows(selector, seed, rng.uniform(0, 100, 3), probe, stage=stage, task=tasks[stage])
    frame = records_table(rows)
    card = build(frame, tasks=tasks, ood=ood)
    for (selector, seed), own in frame.groupby(["selector", "seed"]):
        scores = own[own["kind"] == "score"].groupby(["stage", "task"])["value"].mean().unstack("task")
        R = scores[[*tasks, *ood]].to_numpy()
        np.testing.assert_allclose(card.R("primary", selector, seed), R)
        curves = own[(own["kind"] == "curve") & (own["probe"] == "own")]
        aucs = [adaptation_auc(c["tokens"].to_numpy(float), c["value"].to_numpy()) for _, c in curves.groupby("stage")]
        assert value(card, selector, seed, "auc_own") == pytest.approx(np.mean(aucs))
        assert value(card, selector, seed, "forgetting") == pytest.approx(float(matrix.forgetting(R)))
        assert value(card, selector, seed, "imbalance_raw") == pytest.approx(float(matrix.capability_imbalance(R)))
        assert value(card, selector, seed, "forward_transfer") == pytest.approx(float(matrix.forward_transfer(R)))
    for seed in range(4):  # myopia gap of a selector, straight from its definition
        names = card.trials.selectors
        long, now, gain = (
            rankdata([-value(card, selector, seed, metric) for selector in names])
            for metric in ("long_horizon", "current", "immediate_gain")
        )
        for metric, first in (("myopia_gap", now), ("myopia_gap_gain", gain)):
            measured = [value(card, selector, seed, metric) for selector in names]
            np.testing.assert_allclose(measured, (long - first) / 2)


def test_signed_gap_has_no_best_value_and_agrees_with_the_verdicts_now(card):
    assert METRICS["myopia_gap"].better == ""
    rows = card.set_gap[card.set_gap["view"] == "primary"].set_index("immediate")
    current = rows.loc["current", "gap"]
    assert (current, rows.loc["immediate_gain", "gap"]) == (1, 1)
    gaps = card.wide(["myopia_gap"])["myopia_gap"]
    assert gaps.abs().mean() == pytest.approx(current)  # the same ranks in both seeds
    assert gaps["loss"] > 0 > gaps["random"]
