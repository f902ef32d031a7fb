"""No text of a data file or of a model is executed by a verifier."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from reasoning_gym.factory import DATASETS

from longgame.data.examples import Example
from longgame.errors import DataError
from longgame.evaluation.scorers import build_scorer
from longgame.evaluation.verifiers import PURE_VERIFIERS, check_verifier

PAYLOAD = "__import__('os').environ.__setitem__('PLANTED', '1')"


def item(dataset: str, entry: object) -> Example:
    verifier = {"library": "reasoning_gym", "dataset": dataset, "entry": entry}
    return Example.make("p", "r", verifier=verifier)


def test_every_verifier_is_allowed_or_refused_by_name() -> None:
    assert set(DATASETS) >= PURE_VERIFIERS
    for dataset in sorted(set(DATASETS) - PURE_VERIFIERS):
        for scorer in ("verifier", "exact_match"):
            with pytest.raises(DataError, match=f"verifier of '{dataset}' is not one of"):
                build_scorer(scorer).measures(item(dataset, {"answer": "1"}))


def test_no_allowed_verifier_compiles_a_planted_text() -> None:
    code = textwrap.dedent(
        f"""
        import json, os, sys
        import reasoning_gym
        from longgame.data.examples import Example
        from longgame.errors import DataError
        from longgame.evaluation.verifiers import PURE_VERIFIERS, reward

        payload, seen = {PAYLOAD!r}, []

        def watch(event, arguments):
            if event == "compile" and any(b"__import__" in (x if isinstance(x, bytes) else str(x).encode())
                                          for x in arguments[:1]):
                seen.append(event)
            if event in ("os.system", "subprocess.Popen", "os.putenv", "socket.connect"):
                seen.append(event)

        def plant(value):
            if isinstance(value, str):
                return payload
            if isinstance(value, list):
                return [plant(part) for part in value]
            return {{key: plant(part) for key, part in value.items()}} if isinstance(value, dict) else value

        cases = []
        for dataset in sorted(PURE_VERIFIERS):
            entry = json.loads(json.dumps(reasoning_gym.create_dataset(dataset, size=1, seed=1)[0], default=str))
            cases += [(dataset, entry), (dataset, plant(entry)), (dataset, {{**entry, "answer": payload}})]
            metadata = entry.get("metadata", {{}})
            cases += [(dataset, {{**entry, "metadata": {{**metadata, key: plant(metadata[key])}}}}) for key in metadata]
        sys.addaudithook(watch)
        for dataset, entry in cases:
            verifier = {{"library": "reasoning_gym", "dataset": dataset, "entry": entry}}
            for text in (payload, f"[{{payload}}]", f"(1 + {{payload}})", "[" * 300, "9" * 5000, "1e999999999", "1"):
                try:
                    reward(Example.make("p", "r", verifier=verifier), text)
                except DataError:
                    pass
                assert not seen and "PLANTED" not in os.environ, (dataset, text, seen)
        print('\\n', len(cases))
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 5 * len(PURE_VERIFIERS)


@pytest.mark.parametrize("dataset", [["ab"], None, 3, "", {}, "ab "])
def test_a_dataset_that_is_no_name_is_refused(dataset) -> None:
    with pytest.raises(DataError, match="is not one of"):
        check_verifier(item(dataset, {"answer": "1"}))


@pytest.mark.parametrize("library", ["os", "", None, "reasoning_gym.factory", ["reasoning_gym"]])
def test_another_library_is_refused(library) -> None:
    with pytest.raises(DataError, match="unknown verifier library"):
        check_verifier(Example.make("p", "r", verifier={"library": library, "dataset": "ab", "entry": {}}))
