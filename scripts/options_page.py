"""Makes docs/options.md from the options of all algorithms.

    python scripts/options_page.py

Options that algorithms share come first, a group each; then each algorithm: the groups that it takes, the defaults in
which it differs, and its own options.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rllib_damo import ALGORITHMS
from rllib_damo.core.config import OfflineConfig
from rllib_damo.core.option_groups import (
    CriticTraining,
    DataOptions,
    DynamicsOptions,
    EntropyTraining,
    OfflineTraining,
    OnlineOptions,
    PrecisionTraining,
    RolloutTraining,
)
from rllib_damo.core.options import Option, options_of
from rllib_damo.core.td3 import TD3Training

PAGE = Path(__file__).parent.parent / "docs" / "options.md"
WIDTH = 118
#: Method, title, options.
SHARED: tuple[tuple[str, str, type], ...] = (
    ("training", "All algorithms", OfflineTraining),
    ("training", "Critics", CriticTraining),
    ("training", "Entropy coefficient", EntropyTraining),
    ("training", "Precision", PrecisionTraining),
    ("training", "TD3", TD3Training),
    ("training", "Model rollouts", RolloutTraining),
    ("dynamics", "Dynamics model", DynamicsOptions),
    ("offline_data", "Dataset", DataOptions),
    ("online", "Real environment", OnlineOptions),
)
#: Method of a config class -> what it has.
PRESETS = {"paper": "the published settings instead", "long_rollouts": "settings for tasks whose episodes can end"}
INTRODUCTION = """\
# Options

Each option belongs to a method of the algorithm's config: `DAMOConfig().training(eta=3.0).dynamics(num_ensemble=5)`.
Editors complete them, `help(DAMOConfig.training)` lists them, and a wrong value or name is an error before any work.
RLlib's own options of these methods, and its other methods (`environment`, `evaluation`, `env_runners`, `learners`,
`debugging`), are as [RLlib documents them](https://docs.ray.io/en/latest/rllib/algorithm-config.html); those that
would change nothing are refused, with what to use instead.

<!-- Made by scripts/options_page.py. -->

## Schedules

Learning rates and some weights may be schedules instead of numbers: a list of at least two `[gradient step, value]`,
such as `[[0, 3e-4], [100_000, 0.0]]`, between which the value is linear. The steps rise from 0, the values are finite
and not negative, and the first is greater than 0.
"""


def page() -> str:
    """The page's text."""
    parts = [INTRODUCTION, "## Shared options\n"]
    for method, title, group in SHARED:
        parts += [f"### {title}: `.{method}`\n", sentence(group) + "\n", listed(options_of(group))]
    parts.append("## Options of each algorithm\n")
    for name in sorted(ALGORITHMS, key=lambda name: name != "DAMO"):
        parts.append(algorithm(ALGORITHMS[name].get_default_config()))
    return "\n".join(parts)


def algorithm(config: OfflineConfig) -> str:
    """What is particular to an algorithm."""
    kind = type(config)
    own: dict[str, tuple[str, Option]] = {}
    taken: list[str] = []
    for method in kind.option_groups:
        left = kind.own_options(method)
        for group_method, title, group in SHARED:
            names = options_of(group)
            if method == group_method and all(n in left and left[n].meaning == names[n].meaning for n in names):
                taken.append(f"[{title}](#{anchor(f'{title}: .{method}')})")
                left = {name: option for name, option in left.items() if name not in names}
        own |= {name: (method, option) for name, option in left.items()}
    parts = [f"### {config.algorithm_name}\n", wrap(f"`{kind.__name__}` takes: {', '.join(taken)}.") + "\n"]
    others = [f"`{name}` {value(default)}" for name, default in kind.defaults.items() if name not in own]
    if others:
        parts.append(wrap(f"Other defaults of shared options: {', '.join(others)}.") + "\n")
    if own:
        parts.append(listed({name: option for name, (_, option) in own.items()}))
    for name, settings in PRESETS.items():
        if hasattr(kind, name):
            text = f"`{kind.__name__}.{name}()` has {settings}: {differences(getattr(kind, name)())}."
            parts.append(wrap(text) + "\n")
    return "\n".join(parts)


def differences(config: OfflineConfig) -> str:
    """Options that are not at the algorithm's defaults."""
    return ", ".join(
        f"`{name}` {published(getattr(config, name))}"
        for name, option in config.own_options().items()
        if getattr(config, name) != option.default
    )


def listed(options: Mapping[str, Option]) -> str:
    """A list item for each option."""
    return "".join(item(name, option) + "\n" for name, option in options.items())


def item(name: str, option: Option) -> str:
    expected = re.sub(r", or a schedule: .*", ", or a [schedule](#schedules)", option.check.expected)
    default = "" if name == "input_" else f", by default {value(option.default)}"
    return wrap(f"- **`{name}`**{default}: {markdown(option.meaning)} *Must be {markdown(expected)}.*", "  ")


def published(setting: Any) -> str:
    """A setting of ``paper()``, a schedule by its ends."""
    if isinstance(setting, list) and isinstance(setting[0], list):
        return f"a [schedule](#schedules) from {value(setting[0][1])} to {value(setting[-1][1])}"
    return value(setting)


def sentence(group: type) -> str:
    return wrap(markdown(inspect.getdoc(group).splitlines()[0]))  # type: ignore[union-attr]


def value(default: Any) -> str:
    """A default as it is written in Python."""
    if isinstance(default, int) and not isinstance(default, bool):
        return f"`{default:_}`"
    return f"`float({str(default)!r})`" if default == float("inf") else f"`{default!r}`"


def markdown(text: str) -> str:
    """Text of a docstring as Markdown: stars that stand for themselves, code in single backquotes."""
    parts = text.replace("``", "`").split("`")
    return "`".join(part if i % 2 else part.replace("*", r"\*") for i, part in enumerate(parts))


def anchor(title: str) -> str:
    """The anchor that mkdocs and GitHub give a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def wrap(text: str, indent: str = "") -> str:
    """Lines of `WIDTH`, of which none starts with what Markdown takes for a list or a quotation."""
    text = re.sub(r" (?=([-+>]=?|\d+[.)]) )", "\u00a0", text)
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    PAGE.write_text(page())
