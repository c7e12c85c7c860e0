"""What the experiment of overtraining found, as text."""

from __future__ import annotations

from typing import Any

from rethink_jax import promised

_COLUMNS = {
    "minimum norm": "minimum norm",
    "last step": "last step",
    "stopped": "stopped",
    "ridge": "best ridge",
    "large start, end": "large, end",
    "large start, stopped": "large, stopped",
    "small start, end": "small, end",
}
_WIDTH = 19


def _lists(length: str, *names: str, of: Any = promised.FINITE) -> dict[str, promised.Each]:
    return dict.fromkeys(names, promised.Each(of, length))


# A standard error is None for one seed; theory where it is infinite.
_OR_NONE = (promised.FINITE, None)
_BY_ALPHA = _lists("alphas", "mean", "median", "lowest", "highest")
_BY_RATIO = _lists("ratios", "mean", "median", "lowest", "highest")
_FINE = _lists("more alphas", "minimum norm", "stopped", "large start, end",
               "large start, stopped", of=_OR_NONE)  # fmt: skip
FOUND = {
    "model": {
        "dimensions": promised.COUNT, "seeds": promised.COUNT, "snr": promised.NUMBER,
        "start": promised.NUMBER, "small start": promised.NUMBER,
    },
    "alpha": promised.Each(promised.POSITIVE, "alphas"),
    "theory": _lists("alphas", *_COLUMNS, of=_OR_NONE),
    "simulated": dict.fromkeys(_COLUMNS, _BY_ALPHA),
    "theory, at more alphas": _FINE | _lists("more alphas", "alpha", "ridge", of=promised.POSITIVE),
    "curves": promised.Each(
        {"alpha": promised.POSITIVE, "learning rate": promised.POSITIVE}
        | _lists("checkpoints", "test", "training", "test, theory", "training, theory")
        | _lists("checkpoints", "steps", of=promised.COUNT)
    ),
    "times": promised.Each(
        {"alpha": promised.POSITIVE}
        | _lists("snrs", "snr", "theory", "simulated", of=promised.POSITIVE)
    ),
    "images": promised.Maybe({
        "data": {"name": promised.NAME}, "images": promised.COUNT, "label noise": promised.NUMBER,
        "seeds": promised.COUNT, "steps": promised.COUNT,
        "ratio": promised.Each(promised.POSITIVE, "ratios"),
        "errors": dict.fromkeys(("minimum norm", "last step", "best", "best step"), _BY_RATIO),
    }),
    "statements": {
        **dict.fromkeys(
            ("peak of the minimum norm, alpha", "peak in theory, alpha",
             "minimum norm at the peak, median", "stopped at the peak"), promised.NUMBER,
        ),
        ...: (promised.NUMBER, None, promised.Each((promised.NUMBER, None), least=0)),
    },
}  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Errors by alpha, simulated with standard errors and by theory; then what they say."""
    model = found["model"]
    lines = [
        f"A linear student in {model['dimensions']} dimensions, signal to noise {model['snr']:g}, "
        f"{model['seeds']} data sets at each alpha (examples / dimensions). Squared test error "
        "over that of the noise-free teacher's output: simulated, theory.",
        f"minimum norm: median. stopped: at the theory's best time. ridge: 1/snr. "
        f"large, small: from weights of deviation {model['start']:g} and "
        f"{model['small start']:g}; the others from zero.",
        f"{'alpha':>6}" + "".join(f"{words:>{_WIDTH}}" for words in _COLUMNS.values()),
    ]
    for i, alpha in enumerate(found["alpha"]):
        cells = [_cell(found, name, i) for name in _COLUMNS]
        lines.append(f"{alpha:>6g}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells))
    lines += ["", *_times(found)]
    if "images" in found:
        lines += ["", *_images(found["images"])]
    lines += ["", *(f"{name}: {_shown(value)}" for name, value in found["statements"].items())]
    return "\n".join(lines)


def _cell(found: dict[str, Any], name: str, i: int) -> str:
    kind = "median" if name == "minimum norm" else "mean"
    theory = found["theory"][name][i]
    return f"{found['simulated'][name][kind][i]:.3f}, {_shown(theory, 'inf')}"


def _shown(value: Any, missing: str = "-") -> str:
    if value is None:
        return missing
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.3f}"


def _times(found: dict[str, Any]) -> list[str]:
    times = found["times"]
    heads = "".join(f"{snr:>16g}" for snr in times[0]["snr"])
    lines = ["Best time to stop by signal to noise: simulated, theory.", f"{'alpha':>6}{heads}"]
    for of in times:
        cells = [f"{a:.2f}, {b:.2f}" for a, b in zip(of["simulated"], of["theory"], strict=True)]
        lines.append(f"{of['alpha']:>6g}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def _images(made: dict[str, Any]) -> list[str]:
    errors = made["errors"]
    lines = [
        f"{made['images']} images of {made['data']['name']}, {made['label noise']:.0%} of labels "
        f"redrawn, random ReLU features, {made['seeds']} seeds: test error on true labels. "
        f"best: of all steps up to {made['steps']:,}, chosen by the test images.",
        f"{'features / images':>18}{'minimum norm':>16}{'last step':>16}{'best':>16}"
        f"{'best step, squared':>20}",
    ]
    for i, ratio in enumerate(made["ratio"]):
        cells = [
            f"{100 * errors[name]['mean'][i]:.1f}%"
            for name in ("minimum norm", "last step", "best")
        ]
        step = f"{errors['best step']['mean'][i]:.0f}"
        lines.append(f"{ratio:>18g}" + "".join(f"{cell:>16}" for cell in cells) + f"{step:>20}")
    return lines
