"""What `python -m visattn.benchmark zoo` has measured: rows in a JSON file, and tables in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from visattn.files import atomic_path

reference = "airbench94"


class Speed(NamedTuple):
    """Cost and pace of one network.

    Attributes:
        name: of the preset.
        image_size: side in pixels.
        parameters, multiply_adds: of the network with its classifier, the latter for one image forward.
        batch_size, threads, dtype, processor: of the measurement.
        forward, training: images a second; training is forward, backward and a step of AdamW, None if not measured.
        forward_ratio, training_ratio: to the pace of timm's twin, above 1 where ours is faster; None without a twin.
    """

    name: str
    image_size: int
    parameters: int
    multiply_adds: int
    batch_size: int
    threads: int
    dtype: str
    processor: str
    forward: float
    training: float | None
    forward_ratio: float | None
    training_ratio: float | None


class Training(NamedTuple):
    """What one network learned in its time.

    Attributes:
        name: of the preset, or "airbench94".
        parameters, multiply_adds: of the network with its classifier, the latter for one image forward.
        minutes, threads, dtype, processor, seed, train_images: of the training; the last is how many there were.
        steps, left_out, images, cores: see `Trained`.
        training, forward: images a second, in the training with all that belongs to it, and in the test.
        accuracy, views, accuracy_views: of the test images, see `Score`.
    """

    name: str
    parameters: int
    multiply_adds: int
    minutes: float
    threads: int
    dtype: str
    processor: str
    seed: int
    train_images: int
    steps: int
    left_out: int
    images: int
    cores: float
    training: float
    forward: float
    accuracy: float
    views: int
    accuracy_views: float | None


class Results(NamedTuple):
    """All rows of a file."""

    speed: tuple[Speed, ...] = ()
    training: tuple[Training, ...] = ()


def read_results(file: Path) -> Results:
    """The rows of a file; none if there is no such file.

    Raises:
        ValueError: it holds something else.
    """
    if not file.exists():
        return Results()
    try:
        content = json.loads(file.read_text())
        speed = tuple(Speed(**row) for row in content["speed"])
        return Results(speed, tuple(Training(**row) for row in content["training"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a file that the zoo benchmark has written ({error!r})") from error


def add_result(file: Path, row: Speed | Training) -> None:
    """Adds a row to a file, whose old rows stay; a killed run leaves a whole file."""
    before = read_results(file)
    if isinstance(row, Speed):
        results = before._replace(speed=(*before.speed, row))
    else:
        results = before._replace(training=(*before.training, row))
    content = {name: [entry._asdict() for entry in rows] for name, rows in results._asdict().items()}
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def markdown(results: Results) -> str:
    """Both tables, those who learned most first."""
    tables = []
    if results.training:
        tables.append("\n".join(training_lines(results.training)))
    if results.speed:
        tables.append("\n".join(speed_lines(results.speed)))
    return "\n\n".join(tables)


def training_lines(rows: tuple[Training, ...]) -> list[str]:
    """One line for each training; the last column compares with the reference of the same minutes, if it is there."""
    lines = [
        "| model | minutes | parameters | multiply-adds | images/s trained | images/s forward | test accuracy "
        f"| of several views | to {reference} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    goals = {row.minutes: row.accuracy for row in rows if row.name == reference}
    for row in sorted(rows, key=lambda row: (row.minutes, -row.accuracy)):
        views = "" if row.accuracy_views is None else f"{row.accuracy_views:.2%} ({row.views})"
        goal = goals.get(row.minutes)
        difference = "" if goal is None or row.name == reference else f"{100 * (row.accuracy - goal):+.1f}"
        lines.append(
            f"| `{row.name}` | {row.minutes:g} | {millions(row.parameters)} | {millions(row.multiply_adds)} "
            f"| {row.training:.0f} | {row.forward:.0f} | {row.accuracy:.2%} | {views} | {difference} |"
        )
    return lines


def speed_lines(rows: tuple[Speed, ...]) -> list[str]:
    lines = [
        "| model | pixels | parameters | multiply-adds | images/s forward | to timm's | images/s training "
        "| to timm's |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row.image_size, row.name)):
        cells = [pace(row.forward), ratio(row.forward_ratio), pace(row.training), ratio(row.training_ratio)]
        lines.append(
            f"| `{row.name}` | {row.image_size} | {millions(row.parameters)} | {millions(row.multiply_adds)} "
            f"| {' | '.join(cells)} |"
        )
    return lines


def millions(count: int) -> str:
    """1234567 as "1.23 M", 45678901234 as "45.7 G"."""
    return f"{count / 1e6:.3g} M" if count < 999.5e6 else f"{count / 1e9:.3g} G"


def pace(images_per_second: float | None) -> str:
    if images_per_second is None:
        return ""
    return f"{images_per_second:.0f}" if images_per_second >= 10 else f"{images_per_second:.2g}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
