"""The study's runner runs equal trials once; its pages say of a claim what the scorecard's statistics say."""

import dataclasses
import inspect
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy, ttest_rel

from longgame.audit.execute import run_audit
from longgame.errors import DataError
from longgame.metrics.catalog import METRICS
from longgame.recipe import load_recipe, parse_recipe
from longgame.selection.methods.lhas import LHASSelector
from longgame.storage import read_json
from studies.results import __main__ as commands
from studies.results import data, field, pages, steps
from studies.results.claims import AGAINST, CLAIMS, DIRECTION, OTHER, SHOWN, Claim, answers
from support.quadratic_audit import Silent

ROOT = Path(__file__).parents[2]


def world(name, selectors, **changes):
    return parse_recipe(
        {
            "name": name,
            "model": {"name": "quadratic"},
            "data": {
                "sequence": "quadratic",
                "stages": [{"name": "general"}, {"name": "math"}, {"name": "code"}],
                "ood": [{"name": "general-rotated"}],
                "pool_size": 48,
            },
            "selectors": selectors,
            "seeds": [0, 1, 2],
            "training": {"steps": 4, "learning_rate": 0.1, "warmup_steps": 1},
            "probe": {"steps": 4, "points": 3},
            **changes,
        }
    )


def audit(recipe, folder):
    return run_audit(recipe, folder, workers=1, threads=1, display=Silent())


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """A finished run of random and loss."""
    folder = tmp_path_factory.mktemp("one") / "one"
    audit(world("one", ["random", "loss"]), folder)
    return folder


def test_trial_copied_from_another_run_has_the_same_numbers(first_run, tmp_path):
    two = world("two", ["random", "quality"])
    assert steps.take_over(two, tmp_path / "two", [first_run]) == 3  # random with three seeds
    assert read_json(tmp_path / "two" / "environment.json")["sessions"] == []
    shared = audit(two, tmp_path / "two").results
    alone = audit(two, tmp_path / "alone").results
    assert set(shared["selector"]) == {"random", "quality"}
    both = [table[table["kind"] != "cost"].reset_index(drop=True) for table in (shared, alone)]
    pd.testing.assert_frame_equal(*both)


def test_a_trial_under_other_settings_is_not_taken_over(first_run, tmp_path):
    assert steps.take_over(world("two", ["random"], budget=0.5), tmp_path / "two", [first_run]) == 0


def test_a_step_is_finished_where_its_run_has_grown_beyond_it(first_run, tmp_path):
    small = world("one", ["loss"], seeds=[1])
    assert steps.is_finished(small, first_run)
    assert not steps.is_finished(world("one", ["random", "loss", "quality"]), first_run)
    assert not steps.is_finished(small, tmp_path)


def test_all_trials_can_be_copied_from_other_runs(first_run, tmp_path):
    two = world("two", ["loss", "random"])
    assert steps.take_over(two, tmp_path / "two", [first_run]) == 6
    assert len(audit(two, tmp_path / "two").scorecard.trials) == 6


@pytest.fixture(scope="module")
def study_run(tmp_path_factory):
    """A run in which one trial was not finished, kept and loaded again."""
    folder = tmp_path_factory.mktemp("study")
    recipe = world("skill", ["random", "loss", "quality"], axes={"budget": [0.1]})
    audit(recipe, folder / "skill")
    (folder / "skill" / "trials" / "loss-s2@budget=0.1" / "stage-3.zip").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "RUNS", folder)
        data.keep(folder / "data")
    return data.load(folder / "data")["skill"]


def test_only_complete_seeds_are_compared(study_run):
    assert study_run.facts["finished"] == study_run.facts["trials"] - 1
    assert study_run.complete_seeds() == [0, 1, 2]
    assert study_run.complete_seeds("budget=0.1") == [0, 1]
    summary = study_run.card("budget=0.1").summary
    assert set(summary.loc[summary["metric"] == "long_horizon", "n"]) == {2}


def test_committed_data_give_the_scorecard_of_the_run(study_run, tmp_path):
    again = audit(world("skill", ["random", "loss", "quality"]), tmp_path / "again").scorecard
    metrics = ["current", "forgetting", "long_horizon", "auc_common", "capability_entropy"]
    np.testing.assert_allclose(study_run.card().wide(metrics), again.wide(metrics), rtol=1e-5)


@pytest.mark.parametrize(
    ("difference", "p", "sign", "word"),
    [(2.0, 0.01, 1, SHOWN), (2.0, 0.01, -1, AGAINST), (2.0, 0.2, 1, DIRECTION), (2.0, 0.2, -1, OTHER)],
)
def test_claim_is_shown_by_adjusted_p_and_sign(study_run, difference, p, sign, word):
    card = planted(study_run, difference, p)
    ((answer,),) = answers([({"random": card}, "primary")], [Claim("RQ1", "loss", "current", sign)])
    assert answer.word == word
    assert answer.p == pytest.approx(2 * p)  # of two selectors
    assert "+2.0" in answer.text


def planted(run, difference, p):
    """The run's scorecard with this difference and p of loss on the current score, and p = 1 of the other selector."""
    card = run.card()
    rows = (card.summary["view"] == "primary") & (card.summary["metric"] == "current")
    card.summary.loc[rows & (card.summary["selector"] == "quality"), "p"] = 1.0
    card.summary.loc[rows & (card.summary["selector"] == "loss"), ["diff_vs_reference", "p"]] = difference, p
    return card


def test_claim_shown_in_k_of_m_columns_is_corrected_over_the_m(study_run):
    sides = [({"random": planted(study_run, 2.0, p)}, "primary") for p in (0.01, 0.006, 0.5)]
    claim = Claim("RQ1", "loss", "current", 1)
    (row,) = answers([*sides, ({}, "primary")], [claim])
    assert [answer.p for answer in row[:3]] == pytest.approx([0.05, 0.036, 1.0])  # 6 tests: 5 × .01, 6 × .006
    assert [answer.word for answer in row[:3]] == [DIRECTION, SHOWN, DIRECTION]
    assert row[3] is None
    ((alone,),) = answers(sides[:1], [claim])
    assert alone.word == SHOWN


def test_a_claim_about_a_selector_that_was_not_run_has_no_answer(study_run):
    side = {"random": study_run.card()}, "primary"
    assert answers([side], [Claim("RQ1", "gradient", "current", 1)]) == [[None]]
    assert answers([({}, "primary")], [Claim("RQ1", "loss", "current", 1)]) == [[None]]


def test_every_claim_names_a_metric_that_exists_and_a_direction():
    assert all(claim.metric in METRICS and claim.sign in (-1, 1) for claim in CLAIMS)
    assert len({(claim.selector, claim.metric, claim.sign, claim.reference) for claim in CLAIMS}) == len(CLAIMS)


def test_differences_have_interval_and_detectable_size(study_run):
    text = pages.difference_table(study_run.card(), study_run.recipe, ("current",), "primary")
    row = study_run.card().summary.query("view == 'primary' and metric == 'current' and selector == 'loss'").iloc[0]
    assert f"{abs(row['diff_vs_reference']):.1f}" in text
    assert f"mde {row['mde']:.1f}" in text


def test_development_and_held_out_recipes_share_nothing():
    recipes = {path.stem: load_recipe(path) for path in (ROOT / "recipes" / "results").glob("*.yaml")}
    tuning = [recipes.pop(name) for name in steps.DEVELOPMENT]
    for dev, recipe in itertools.product(tuning, recipes.values()):
        assert not set(dev.seeds) & set(recipe.seeds)
        assert dev.model.name not in recipe.model.per_seed
        assert recipe.model.per_seed or recipe.model.name == "smollm2-135m"  # which has one base
        assert dev.data.order not in {recipe.data.order, *recipe.axes.order.given}


def test_the_steps_name_recipes_that_exist_and_fit_their_seeds():
    for step in steps.STEPS:
        recipe = load_recipe(ROOT / step.recipe)
        if step.seeds and not step.real_data:
            first, last = map(int, step.seeds.split("-"))
            assert set(range(first, last + 1)) <= set(recipe.seeds)


def test_held_out_lhas_is_the_published_form():
    defaults = {name: parameter.default for name, parameter in inspect.signature(LHASSelector).parameters.items()}
    for name in ("skill", "domain", "interleaved", "proxy-items", "conditions", "lhas-ablation"):
        lhas = {spec.key: spec for spec in load_recipe(ROOT / f"recipes/results/{name}.yaml").selectors}["lhas"]
        assert lhas.name == "lhas"
        assert defaults | lhas.parameters == defaults


def test_the_page_names_the_form_that_leads_the_finals():
    runs = data.load(ROOT / data.DATA)
    finals = {spec.key: spec for spec in runs["lhas-finals"].recipe.selectors}
    best = pages.chosen(runs["lhas-finals"])
    page = (ROOT / "docs/results/lhas.md").read_text(encoding="utf-8")
    assert f"long-horizon score of the finals: **{best}**" in page
    deviates = finals[best].parameters != {"utility": "logit_nuclear_norm", "coverage": "distance", "future_weight": 1}
    assert deviates == ("were not made again" in page)


def test_entropies_of_a_real_run_agree_with_its_picks(study_run):
    """Per stage the recorded diagnostic; over the run the selected tokens of all stages together."""
    here = study_run.results[study_run.results["condition"] == ""]
    picks = here[(here["kind"] == "picks") & (here["name"] == "cluster")]
    recorded = here[(here["kind"] == "diagnostic") & (here["name"] == "capability_entropy")]
    by_trial = study_run.card().per_trial.set_index(["trial", "metric"])["value"]
    for trial, part in picks.groupby("trial", observed=True):
        stages = part.pivot_table(index="stage", columns="sub_skill", values="value", observed=True, aggfunc="sum")
        per_stage = [entropy(row) for row in stages.to_numpy()]
        values = recorded[recorded["trial"] == trial].sort_values("stage")["value"]
        np.testing.assert_allclose(values, per_stage, atol=1e-6)
        assert by_trial[trial, "capability_entropy"] == pytest.approx(np.mean(per_stage), abs=1e-6)
        assert by_trial[trial, "capability_entropy_run"] == pytest.approx(entropy(stages.sum().to_numpy()), abs=1e-6)


def test_response_tokens_of_a_run_are_those_of_its_picks(study_run):
    """The world's examples have a fixed share of response tokens, fewer than all tokens."""
    rows = study_run.results[(study_run.results["kind"] == "cost") & (study_run.results["condition"] == "")]
    wide = rows.pivot_table(index=["trial", "stage"], columns="name", values="value", observed=True)
    assert ((wide["response_tokens"] > 0) & (wide["response_tokens"] < wide["selected_tokens"])).all()


@pytest.fixture(scope="module")
def kept_field():
    """A field on two sequences: kept runs under token accuracy."""
    runs = data.load(ROOT / "docs" / "results" / "data")
    return field.Sequences({name: runs[name] for name in ("domain", "interleaved")})


def test_comparison_is_a_paired_t_test_with_holm_within_its_kind(kept_field):
    board = kept_field.boards["domain"]
    pairs = [("loss", "random", "primary"), ("lhas", "random", "primary"), ("loss", "gradient", "secondary")]
    comparisons = [field.Comparison("", a, b, "long_horizon", kind) for a, b, kind in pairs]
    table = field.compare(board, comparisons)
    rows = board.card.per_trial
    rows = rows[(rows["view"] == "token_accuracy") & (rows["metric"] == "long_horizon")].sort_values("seed")
    value = {name: part["value"].to_numpy() for name, part in rows.groupby("selector")}
    p = [ttest_rel(value[a], value[b]).pvalue for a, b, _ in pairs]
    first, second = sorted(p[:2])
    small, large = 2 * first, max(2 * first, second)
    expected = [small if p[0] == first else large, small if p[1] == first else large, p[2]]
    np.testing.assert_allclose(table["p_holm"], np.minimum(expected, 1))
    np.testing.assert_allclose(table["mean"], [(value[a] - value[b]).mean() for a, b, _ in pairs])


def test_family_is_the_mean_of_its_members_in_each_seed(kept_field):
    board = kept_field.boards["domain"]
    table = field.family_table(board, {"loss": "x", "gradient": "x", "lhas": "y"}).set_index("family")
    differences = board.differences("long_horizon")
    mean = differences[["loss", "gradient"]].mean(axis=1)
    assert table.loc["x", "long_horizon"] == pytest.approx(mean.mean())
    assert table.loc["x", "long_horizon_p"] == pytest.approx(ttest_rel(mean, 0 * mean).pvalue)
    assert table.loc["y", "long_horizon"] == pytest.approx(board.mean("lhas", "long_horizon"))
    assert table.loc["y", "long_horizon_p"] == pytest.approx(board.row("lhas", "long_horizon")["p"])


def test_leaderboard_holds_the_scorecards_differences_and_verdicts(kept_field):
    table = field.leaderboard(kept_field)
    for sequence, board in kept_field.boards.items():
        here = table[(table["sequence"] == sequence) & (table["view"] == "token_accuracy")]
        later = here[here["metric"] == "long_horizon"].set_index("selector")
        assert dict(later["verdict"].drop("random")) == board.verdicts
        assert later.loc["loss", "difference"] == board.mean("loss", "long_horizon")
    assert not table.duplicated(["sequence", "view", "selector", "metric"]).any()


def test_stand_ins_join_the_leaderboard_beside_one_random(kept_field):
    domain = kept_field.runs["domain"]
    spec = {"name": "mods", "label": "mods (rules)"}
    facts = domain.recipe.model_dump(mode="json", exclude={"relative_to"})
    facts["selectors"] = [spec if item["name"] == "loss" else item for item in facts["selectors"]]
    rows = domain.results.assign(selector=domain.results["selector"].astype(str).replace("loss", spec["label"]))
    other = dataclasses.replace(domain, recipe=parse_recipe(facts, "other"), results=rows)
    table = field.leaderboard(kept_field, field.Sequences({"domain": other}))
    assert (table["selector"] == "random").sum() == (field.leaderboard(kept_field)["selector"] == "random").sum()
    assert "stand in for the judge" in field.method_results("mods", table)


def test_another_budget_has_rows_of_its_own(kept_field):
    domain = kept_field.runs["domain"]
    facts = domain.recipe.model_dump(mode="json", exclude={"relative_to"}) | {"budget": 0.1}
    tenth = field.Sequences({"domain": dataclasses.replace(domain, recipe=parse_recipe(facts, "tenth"))})
    table = field.leaderboard(kept_field, tenth)
    assert not table.duplicated(["sequence", "budget", "view", "selector", "metric"]).any()
    assert {*table.loc[table["selector"] == "random", ["sequence", "budget"]].itertuples(index=False, name=None)} == {
        ("domain", 0.25),
        ("domain", 0.1),
        ("interleaved", 0.25),
    }
    text = field.method_results("loss", table)
    assert [line.split(" | ")[:2] for line in text.splitlines() if line.startswith(("| domain", "| interleaved"))] == [
        ["| domain", "25%"],
        ["| interleaved", "25%"],
        ["| domain", "10%"],
    ]
    page = field.field_parts(kept_field, tenth, field.Sequences({}))
    assert page.index("## At a tenth") > page.index("## Families")


def test_a_methods_page_tells_its_rows_of_the_leaderboard(kept_field):
    text = field.method_results("loss", field.leaderboard(kept_field))
    for sequence, board in kept_field.boards.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {sequence} ")]
        assert f"{100 * board.mean('loss', 'long_horizon'):+.1f}".replace("-", "−") in line.replace("-", "−")
        assert board.verdicts["loss"] in line
    assert "not part of" in field.method_results("mods", field.leaderboard(kept_field))


def test_answer_names_every_selector_that_a_verdict_is_shown_for(kept_field):
    for sequence, board in kept_field.boards.items():
        text = field.answer(kept_field, sequence)
        for name, word in board.verdicts.items():
            assert (f" {name}" in text.partition(" For the other")[0]) == (word != "no difference shown")


def test_an_audit_is_placed_among_the_selectors_of_its_recipe(study_run, first_run, tmp_path):
    kept = field.Sequences({"skill": study_run}, "primary")
    with pytest.raises(DataError, match="more than its selectors"):
        field.place(first_run, kept)
    audit(world("lone", ["loss"], axes={"budget": [0.1]}), tmp_path / "lone")
    with pytest.raises(DataError, match="no trials of random"):
        field.place(tmp_path / "lone", kept)
    audit(world("mine", ["random", "loss"], axes={"budget": [0.1]}), tmp_path / "mine")
    gap, line = field.place(tmp_path / "mine", kept)
    assert "within 0.00 points" in gap
    board = kept.boards["skill"]
    better = board.mean("quality", "long_horizon") > board.mean("loss", "long_horizon")
    assert line.startswith("loss on the skill sequence")
    assert f"place {1 + better} of 2" in line


def test_what_was_kept_of_a_run_that_is_gone_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "RUNS", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "runs.json").write_text('{"skill": {"trials": 3}}')
    data.keep(tmp_path / "data")
    assert read_json(tmp_path / "data" / "runs.json") == {"skill": {"trials": 3}}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """Function that keeps a run of these seeds as a machine of its own would; the folder of what is kept."""
    kept = tmp_path / "kept"

    def keep_run(seeds, **changes):
        folder = tmp_path / "machine" / f"{seeds}{sorted(changes)}"
        selectors = changes.pop("selectors", ["random", "quality"])
        audit(world("skill", selectors, seeds=seeds, **changes), folder / "skill")
        monkeypatch.setattr(steps, "RUNS", folder)
        data.keep(kept)
        return data.load(kept)["skill"]

    keep_run.folder = kept
    return keep_run


def test_seeds_of_two_machines_are_kept_as_one_run(elsewhere, tmp_path):
    first = elsewhere([0, 2])
    both = elsewhere([1])
    again = elsewhere([1])
    assert both.recipe.seeds == again.recipe.seeds == (0, 1, 2)
    assert both.facts["trials"] == both.facts["finished"] == 6
    assert both.facts["sessions"] == again.facts["sessions"]
    assert both.facts["sessions"][0] == first.facts["sessions"][0]
    alone = audit(world("skill", ["random", "quality"]), tmp_path / "alone").scorecard
    np.testing.assert_allclose(both.card().wide(["current", "long_horizon"]), alone.wide(["current", "long_horizon"]))


def test_kept_trials_that_would_measure_otherwise_are_dropped(elsewhere):
    elsewhere([0, 2])
    assert elsewhere([1], budget=0.5).recipe.seeds == (1,)


def test_a_seed_is_kept_from_one_machine(elsewhere):
    elsewhere([0, 2])
    more = elsewhere([1, 2], selectors=["random", "quality", "loss"])
    at_two = more.results[more.results["seed"] == 2]
    assert set(at_two["selector"]) == {"random", "quality", "loss"}
    assert more.complete_seeds() == [1, 2]
    assert elsewhere([0, 2], proxy={"items_per_skill": 1}).recipe.seeds == (0, 2)  # measures otherwise


def test_kept_trials_of_other_versions_are_not_mixed(elsewhere):
    elsewhere([0])
    facts = read_json(elsewhere.folder / "runs.json")
    facts["skill"]["versions"]["torch"] = "1.0"
    (elsewhere.folder / "runs.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"skill: 2 trials were kept with other versions \(torch 1.0, here 2"):
        elsewhere([1])


def test_only_seeds_that_are_not_kept_are_missing(elsewhere):
    file = elsewhere.folder / "skill.parquet"
    recipe = world("skill", ["random", "quality"])
    assert data.missing_seeds(recipe, file) == [0, 1, 2]
    elsewhere([0, 2])
    assert data.missing_seeds(recipe, file) == [1]
    assert data.missing_seeds(world("skill", ["random", "loss"]), file) == [0, 1, 2]
    assert data.missing_seeds(world("skill", ["random"], budget=0.5), file) == [0, 1, 2]


def test_missing_seeds_are_added_to_those_that_were_started_here(elsewhere, tmp_path, monkeypatch):
    recipe = tmp_path / "skill.yaml"
    recipe.write_text(json.dumps(world("skill", ["random", "quality"]).model_dump(mode="json", exclude_defaults=True)))
    elsewhere([0])
    elsewhere([2])  # in a folder of its own, as on another machine; this one is here now
    asked = []
    monkeypatch.setattr(commands, "STEPS", [steps.Step("skill", recipe)])
    monkeypatch.setattr(commands, "run_step", lambda step, *_: asked.append(step.seeds) or True)
    commands.run_steps(missing=True, data=elsewhere.folder)
    assert asked == ["1,2"]
    elsewhere([1])
    commands.run_steps(missing=True, data=elsewhere.folder)
    assert asked == ["1,2"]
