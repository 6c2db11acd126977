"""Every backbone of the zoo: what it costs, how fast it is beside timm's twin, and what it learns in equal time.

`python -m visattn.benchmark zoo speed`, `zoo accuracy --minutes 2 --data FOLDER`, then `zoo table zoo.json` and
`zoo plot zoo.json zoo.png`. Rows that a file has already are not measured again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from visattn.benchmark.airbench import Airbench94, train_airbench
from visattn.benchmark.measure import print_environment, processor_name
from visattn.benchmark.zoo_plot import training_figure
from visattn.benchmark.zoo_results import Speed, Training, add_result, markdown, pace, ratio, read_results, reference
from visattn.benchmark.zoo_speed import (
    build,
    count_parameters,
    large_models,
    measure_speed,
    multiply_adds,
    small_models,
)
from visattn.benchmark.zoo_training import (
    ImageSet,
    Show,
    Trained,
    augmented_batches,
    elapsing,
    first_images,
    load_images,
    measure_accuracy,
    train_with_muon,
)
from visattn.files import atomic_path
from visattn.heads import ImageClassifier

app = typer.Typer(help="Every backbone: cost, speed beside timm's, accuracy after equal minutes.", no_args_is_help=True)

Names = Annotated[list[str] | None, typer.Argument(help="Of presets, or airbench94; all by default.")]
Threads = Annotated[int, typer.Option(help="Of torch; as many as there are cores.")]
Precision = Annotated[str, typer.Option(help="float32, or bfloat16 by autocast.")]
Output = Annotated[Path, typer.Option(help="JSON file; rows that it has are not measured again.")]


@app.command()
def speed(
    names: Names = None,
    size: Annotated[list[int] | None, typer.Option(help="Pixels, 32 or 224; both by default.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images at once; 64 at 32 px and 8 at 224 px.")] = None,
    seconds: Annotated[float, typer.Option(help="For each comparison, at least.")] = 6.0,
    train: Annotated[bool, typer.Option(help="Measure training steps too.")] = True,
    threads: Threads = 2,
    dtype: Precision = "float32",
    output: Output = Path("zoo.json"),
) -> None:
    """Parameters, multiply-adds, and images a second forward and training; a ratio above 1 is faster than timm's.

    Multiply-adds are those of matrix products, attention and convolutions.
    """
    check_dtype(dtype)
    sizes = size or [32, 224]
    if set(sizes) - {32, 224}:
        raise typer.BadParameter(f"size {sizes} must be 32 or 224 pixels", param_hint="--size")
    presets = {32: small_models(), 224: large_models()}
    check_names(names, [name for side in sizes for name in presets[side]])
    torch.set_num_threads(threads)
    print_environment()
    print(
        f"{'model':<26}{'px':>5}{'params':>8}{'mult-adds':>11}{'forward/s':>11}{'ratio':>7}{'training/s':>12}{'ratio':>7}"
    )
    for side in sizes:
        count = batch_size or (64 if side == 32 else 8)
        for name in presets[side]:
            key = (name, side, count, threads, dtype)
            done = [
                (row.name, row.image_size, row.batch_size, row.threads, row.dtype) for row in read_results(output).speed
            ]
            if (names and name not in names) or key in done:
                continue
            row = measure_speed(name, side, batch_size=count, seconds=seconds, train=train, dtype=dtype)
            add_result(output, row)
            print(speed_line(row), flush=True)


def speed_line(row: Speed) -> str:
    costs = f"{row.parameters / 1e6:>7.2f}M{row.multiply_adds / 1e6:>10.1f}M"
    paces = (
        f"{pace(row.forward):>11}{ratio(row.forward_ratio):>7}{pace(row.training):>12}{ratio(row.training_ratio):>7}"
    )
    return f"{row.name:<26}{row.image_size:>5}{costs}{paces}"


class Plan(NamedTuple):
    """What all networks have in common in `zoo accuracy`."""

    minutes: float
    threads: int
    dtype: str
    views: int
    batch_size: int
    airbench_batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    erasing: float
    seed: int


@app.command()
def accuracy(
    names: Names = None,
    minutes: Annotated[float, typer.Option(help="Of wall clock, for each network's training.")] = 2.0,
    data: Annotated[Path, typer.Option(help="Holds cifar-10-batches-py, or train/ and test/ class folders.")] = Path(
        "data"
    ),
    threads: Threads = 2,
    dtype: Precision = "float32",
    views: Annotated[int, typer.Option(help="Of a test image: 1; 2, mirrored too; 6, shifted too.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Of the zoo.")] = 128,
    airbench_batch_size: Annotated[int, typer.Option(help="Of airbench94; fewer suit less than an epoch.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Of the zoo, at its peak.")] = 1e-2,
    weight_decay: Annotated[float, typer.Option(help="Of the zoo's matrices and kernels.")] = 0.2,
    label_smoothing: Annotated[float, typer.Option(help="Of the zoo; airbench94 has 0.2.")] = 0.2,
    erasing: Annotated[float, typer.Option(help="Probability of greyed rectangles, of the zoo.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    train_images: Annotated[int | None, typer.Option(help="So many, evenly from all.")] = None,
    test_images: Annotated[int | None, typer.Option(help="So many, evenly from all.")] = None,
    output: Output = Path("zoo.json"),
) -> None:
    """Trains every network from scratch for the same minutes of the same cores, and tests it.

    The schedule follows the clock, so that each ends with its time; testing isn't counted. All of the zoo learn by one
    recipe (Muon, cosine, an average of the weights), airbench94 by its own.
    """
    check_dtype(dtype)
    check_names(names, small_models())
    if views not in (1, 2, 6):
        raise typer.BadParameter(f"views {views} must be 1, 2 or 6", param_hint="--views")
    plan = Plan(
        minutes,
        threads,
        dtype,
        views,
        batch_size,
        airbench_batch_size,
        learning_rate,
        weight_decay,
        label_smoothing,
        erasing,
        seed,
    )
    torch.set_num_threads(threads)
    print_environment()
    try:
        images = load_images(data, train_images, test_images)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="--data") from error
    console = Console()
    for name in small_models():
        row_dtype = "float32" if name == reference else dtype  # its recipe's
        key = (name, minutes, threads, row_dtype, seed, len(images.train.labels))
        if (names and name not in names) or key in map(training_key, read_results(output).training):
            continue
        row = train_and_test(name, images, plan._replace(dtype=row_dtype), console)
        add_result(output, row)
        console.print(training_line(row), highlight=False)


def training_line(row: Training) -> str:
    views = "" if row.accuracy_views is None else f", {row.accuracy_views:.2%} by {row.views} views"
    left_out = f", {row.left_out} steps left out" if row.left_out else ""
    return (
        f"{row.name}: {row.accuracy:.2%}{views}; {row.images:,} images trained, {row.training:.0f} a second on "
        f"{row.cores:.2f} cores{left_out}; {row.forward:.0f} a second forward"
    )


def training_key(row: Training) -> tuple:
    """Rows of the same key are the same measurement."""
    return row.name, row.minutes, row.threads, row.dtype, row.seed, row.train_images


def train_and_test(name: str, images: ImageSet, plan: Plan, console: Console) -> Training:
    torch.manual_seed(plan.seed)
    model = build(name, 32, images.num_classes)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.3f}"), console=console, transient=True) as progress:
        task = progress.add_task(name, total=1.0, loss=float("nan"))

        def show(passed: float, loss: float) -> None:
            progress.update(task, completed=passed, loss=loss)

        trained = train(model, images, plan, show)
    dtype = getattr(torch, plan.dtype)
    score = measure_accuracy(trained.model, images.test, images.preprocess, views=plan.views, dtype=dtype)
    return Training(
        name,
        count_parameters(model),
        multiply_adds(name, 32, images.num_classes),
        plan.minutes,
        plan.threads,
        plan.dtype,
        processor_name(),
        plan.seed,
        len(images.train.labels),
        trained.steps,
        trained.left_out,
        trained.images,
        trained.cores,
        trained.images / trained.seconds,
        score.images_per_second,
        *score[:3],
    )


def train(model: Airbench94 | ImageClassifier, data: ImageSet, plan: Plan, show: Show) -> Trained:
    """By the recipe that belongs to the network."""
    clock = elapsing(60 * plan.minutes)
    if isinstance(model, Airbench94):
        batches = augmented_batches(data, plan.airbench_batch_size, plan.seed)
        return train_airbench(model, first_images(data, 1000), batches, clock, show)
    if model.backbone.adaptation_images:
        model.backbone.adapt(first_images(data, model.backbone.adaptation_images))
    return train_with_muon(
        model,
        augmented_batches(data, plan.batch_size, plan.seed, erasing=plan.erasing),
        clock,
        show,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        label_smoothing=plan.label_smoothing,
        dtype=getattr(torch, plan.dtype),
    )


@app.command()
def table(results: Annotated[Path, typer.Argument(help="JSON file of the others.")]) -> None:
    """Prints what has been measured as Markdown."""
    sys.stdout.write(markdown(read_results(existing(results))) + "\n")


@app.command()
def plot(
    results: Annotated[Path, typer.Argument(help="JSON file of `zoo accuracy`.")],
    picture: Annotated[Path, typer.Argument(help="PNG, or another format of matplotlib, by its suffix.")],
) -> None:
    """Draws accuracy against multiply-adds and against images a second."""
    figure = training_figure(read_results(existing(results)).training)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary)
    print(picture.resolve())


def existing(file: Path) -> Path:
    if not file.exists():
        raise typer.BadParameter(f"{file}: there is no such file")
    return file


def check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "bfloat16"):
        raise typer.BadParameter(f"dtype {dtype} is neither float32 nor bfloat16", param_hint="--dtype")


def check_names(names: Sequence[str] | None, known: Sequence[str]) -> None:
    if unknown := set(names or ()) - set(known):
        raise typer.BadParameter(f"no such model here: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
