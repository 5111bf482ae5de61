"""Datasets of our own: names, sizes, determinism, and what happens when something is missing or stopped."""

import dataclasses
import hashlib
import json
import pathlib

import minari
import numpy as np
import pytest
import torch

import rllib_damo
from rllib_damo.data.formats import minari_files
from rllib_damo.data.generate import datasets, units
from rllib_damo.data.generate.policies import PolicyRecord
from rllib_damo.data.schema import check
from rllib_damo.data.sources import load
from rllib_damo.errors import DataError


@pytest.fixture(autouse=True)
def _folders(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("RLLIB_DAMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(units, "UNIT_TRANSITIONS", 400)
    monkeypatch.chdir(tmp_path)


def digests(dataset_id: str) -> dict[str, str]:
    folder = minari_files.local_path(dataset_id)
    assert folder is not None
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_names() -> None:
    levels = {"random", "medium", "medium-replay", "medium-expert", "expert"}
    for task in ("hopper", "halfcheetah", "walker2d"):
        assert {name.removeprefix(f"{task}-") for name in datasets.NAMES if name.startswith(task)} == levels
    assert datasets.NAMES["hopper-medium"].dataset_id == "rllib_damo/hopper/medium-v0"
    assert datasets.NAMES["pendulum-mixed"].is_shipped()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hoper-medium", "Did you mean hopper-medium"),
        ("Hopper_Medium", "Did you mean hopper-medium"),
        ("xyz", "There are hopper-random, "),
    ],
)
def test_unknown_names_tell_the_near_ones(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        datasets.make(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transitions": 0}, "transitions must be at least 1, but is 0"),
        ({"seed": -1}, "seed must be at least 0, but is -1"),
        ({"workers": -1}, "workers must be at least 0, but is -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        datasets.make("pendulum-mixed", **arguments)  # type: ignore[arg-type]


def test_made_bytes_depend_on_the_seed_alone(tmp_path: pathlib.Path) -> None:
    made = []
    for workers, seed in ((1, 0), (2, 0), (1, 7)):
        dataset_id = datasets.make("hopper-medium", transitions=1500, seed=seed, workers=workers, progress=False)
        made.append(digests(dataset_id))
    assert made[0] == made[1]
    assert made[0]["main_data.hdf5"] != made[2]["main_data.hdf5"]
    assert [p.suffix for p in (tmp_path / "cache" / "behavior").iterdir()] == [".lock"] * 2  # no units are left


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="needs a processor whose BLAS has two ways to round"
)
def test_processors_with_newer_instructions_play_as_those_without(monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprints = set()
    for kernels in ("Haswell", "SkylakeX"):
        monkeypatch.setenv("OPENBLAS_CORETYPE", kernels)
        fingerprints.add(datasets.generate("hopper-medium", 800, workers=1).fingerprint())
    assert len(fingerprints) == 1


def test_workers_run_this_package() -> None:
    """Where it is installed as a folder, too: an editable installation finds its modules whatever the path."""
    assert pathlib.Path(rllib_damo.__file__).parent == units._PACKAGE


def test_minari_opens_what_was_made() -> None:
    dataset_id = datasets.make("pendulum-mixed", transitions=500, workers=0, progress=False)
    dataset = minari.load_dataset(dataset_id)
    assert dataset.total_steps == 500
    assert [len(episode.rewards) for episode in dataset] == [200, 200, 100]
    assert dataset.recover_environment().spec.id == "Pendulum-v1"
    low, high = (dataset.storage.metadata[f"ref_{end}_score"] for end in ("min", "max"))
    np.testing.assert_allclose(minari.get_normalized_score(dataset, np.array([low, high])), [0, 1])


def test_what_is_there_is_kept_until_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = datasets._generate
    monkeypatch.setattr(datasets, "_generate", lambda *args: (calls.append(args), original(*args))[1])
    first = datasets.make("pendulum-random", transitions=300, workers=0, progress=False)
    before = digests(first)
    datasets.make("pendulum-random", transitions=300, workers=0, progress=False)
    datasets.make("pendulum-random", workers=0, progress=False)
    assert len(calls) == 1
    assert digests(first) == before
    datasets.make("pendulum-random", transitions=200, workers=0, progress=False)
    assert len(calls) == 2
    assert minari.load_dataset(first).total_steps == 200


def test_stopped_making_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    expected = datasets.generate("pendulum-mixed", 1600, workers=0).fingerprint()
    original, played = units.run_unit, []

    def run_unit(**request: str | int) -> int:
        if len(played) == 2:
            raise KeyboardInterrupt
        played.append(request["path"])
        return original(**request)  # type: ignore[arg-type]

    monkeypatch.setattr(units, "run_unit", run_unit)
    with pytest.raises(KeyboardInterrupt):
        datasets.make("pendulum-mixed", transitions=1600, workers=0, progress=False)
    assert minari_files.local_ids() == []
    monkeypatch.setattr(units, "run_unit", lambda **request: (played.append(request["path"]), original(**request))[1])
    dataset_id = datasets.make("pendulum-mixed", transitions=1600, workers=0, progress=False)
    assert len(played) == len(set(played)) == 4
    folder = minari_files.local_path(dataset_id)
    assert folder is not None
    assert json.loads((folder / "metadata.json").read_text())["fingerprint"] == expected


def test_generated_transitions_are_sound_and_of_the_size_asked_for() -> None:
    transitions = datasets.generate("hopper-random", 333, seed=2, workers=0)
    check(transitions)
    assert len(transitions) == 333
    inside = ~(transitions.terminations | transitions.truncations)
    np.testing.assert_array_equal(
        transitions.next_observations[:-1][inside[:-1]], transitions.observations[1:][inside[:-1]]
    )


RECORDS = {
    "hopper-medium": PolicyRecord("Hopper-v5", "medium", 1000.0, 1.0, 400.0, 50),
    "hopper-expert": PolicyRecord("Hopper-v5", "expert", 3000.0, 1.0, 800.0, 50),
    "hopper-replay-0": PolicyRecord("Hopper-v5", "replay", 20.0, 1.0, 20.0, 50, share=0.25),
    "hopper-replay-1": PolicyRecord("Hopper-v5", "replay", 500.0, 1.0, 200.0, 50, share=0.75),
}


def test_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_index", lambda: RECORDS)
    specs = datasets.NAMES
    assert specs["hopper-medium-expert"].parts() == {"hopper-medium": 0.5, "hopper-expert": 0.5}
    assert specs["hopper-medium-replay"].parts() == {"hopper-replay-0": 0.25, "hopper-replay-1": 0.75}
    assert [s.transitions for s in specs["hopper-medium-replay"].streams(1001)] == [250, 751]
    # of 800 transitions each, medium has 2 episodes and the expert 1
    assert specs["hopper-medium-expert"].recorded_return() == pytest.approx((2 * 1000 + 3000) / 3)
    assert specs["hopper-random"].recorded_return() is None
    medium, both = specs["hopper-medium"].streams(10)[0], specs["hopper-medium-expert"].streams(20)[0]
    assert dataclasses.replace(both, transitions=10) == dataclasses.replace(medium, transitions=10)


def test_policies_that_are_not_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_index", dict)
    for name, spec in datasets.NAMES.items():
        assert spec.is_shipped() == name.endswith(("-random", "-mixed"))
    with pytest.raises(DataError, match=r"hopper-medium-replay: its behaviour policies are not shipped.*hopper-random"):
        datasets.make("hopper-medium-replay")


def test_a_name_may_say_its_size() -> None:
    spec = datasets.get_spec("hopper-medium-expert@2M")
    assert (spec.default_transitions, spec.dataset_id) == (2_000_000, "rllib_damo/hopper/medium-expert-2M-v0")
    assert datasets.get_spec("pendulum-mixed@1500k").dataset_id == "rllib_damo/pendulum/mixed-1500k-v0"
    # equal sizes are one dataset
    assert datasets.get_spec("hopper-medium@1000k") == datasets.get_spec("hopper-medium@1000000")
    assert datasets.get_spec("hopper-medium@1000k").name == "hopper-medium@1M"


@pytest.mark.parametrize("name", datasets.NAMES)
def test_a_size_changes_nothing_but_the_number_of_rows(name: str) -> None:
    plain, sized = datasets.get_spec(name), datasets.get_spec(f"{name}@2M")
    assert sized.is_shipped() == plain.is_shipped()
    if plain.is_shipped():
        assert sized.parts() == plain.parts()
        assert sized.recorded_return() == plain.recorded_return()
        assert sized.streams(1000) == plain.streams(1000)


def test_the_work_of_another_size_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_generate", stop)
        with pytest.raises(KeyboardInterrupt):
            datasets.make("pendulum-random@1k", workers=0)
    (left,) = tmp_path.glob("cache/behavior/*/")
    datasets.generate("pendulum-random", 300, workers=0)
    assert left.is_dir()


def test_a_dataset_of_a_size_is_beside_that_of_the_plain_name() -> None:
    plain = datasets.make("pendulum-random", transitions=300, progress=False, workers=0)
    sized = datasets.make("pendulum-random@400", progress=False, workers=0)
    assert [len(load(name)) for name in ("pendulum-random", "pendulum-random@400")] == [300, 400]
    assert plain != sized
    assert datasets.make("pendulum-random@400", transitions=400, progress=False, workers=0) == sized


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "hopper-medium@big",
            "hopper-medium@big: after the @ comes a number of transitions, such as hopper-medium@500k",
        ),
        ("hopper-medium@", "after the @ comes a number"),
        ("hopper-medium@0", "after the @ comes a number"),
        ("hoper-medium@1M", "no dataset 'hoper-medium@1M'. Did you mean hopper-medium@1M"),
    ],
)
def test_wrong_sizes_are_told(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        datasets.make(name, workers=0)


def test_a_size_that_is_said_twice_is_refused() -> None:
    with pytest.raises(DataError, match="hopper-medium@1M has 1000000 transitions, not 5: say the size once"):
        datasets.make("hopper-medium@1M", transitions=5, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", datasets.NAMES)
def test_returns_are_the_recorded_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    spec = datasets.NAMES[name]
    if not spec.is_shipped():
        pytest.skip("not shipped")
    returns = datasets.generate(name, spec.default_transitions, seed=11).episode_returns()
    expected = spec.recorded_return()
    assert expected is not None
    # near 0, as random walkers are, a share of the return says nothing
    assert returns.mean() == pytest.approx(expected, rel=0.1, abs=5)
