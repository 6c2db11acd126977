"""`visattn demo`: a page to drop a picture on, read its caption, and click a word to see where it came from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from visattn.cli.checkpoint import CaptionerOption, DeviceOption

if TYPE_CHECKING:
    from PIL import Image

    from visattn.heads import ImageCaptioner
    from visattn.interpret import WordAttention

_introduction = "Drop a picture and click a word of its caption: bright is where the network looked as it chose it."
_unmarked = "What the network sees"
_side = 480  # pixels of the longer side of what the network saw


class Description(NamedTuple):
    """What the page shows of a picture.

    Attributes:
        view: what the network saw of it.
        text: the caption.
        words: those of the caption, each with its map.
    """

    view: Image.Image
    text: str
    words: list[WordAttention]


def main(
    checkpoint: CaptionerOption = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="default: the first free one from 7860 on")
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="address to serve at; 0.0.0.0 lets other machines in, unasked and unencrypted")
    ] = "127.0.0.1",
    beams: Annotated[int, typer.Option("--beams", min=1, help="beginnings that the search keeps; 1: greedy")] = 5,
    max_words: Annotated[int, typer.Option("--max-words", min=1, help="words of a caption, at most")] = 20,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="only serve the page, open no browser")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Serves a page that describes pictures and shows where the network looked for each word.

    Needs the extra: `pip install "visattn[demo]"`. Nothing leaves this machine.

    Examples:

        visattn demo

        visattn demo -c outputs/RUN/model --port 8000 --no-browser
    """
    from visattn.cli.checkpoint import open_model
    from visattn.cli.errors import errors_as_messages
    from visattn.heads import ImageCaptioner

    with errors_as_messages():
        check_extra()
        page = build_page(open_model(ImageCaptioner, checkpoint, device), beams, max_words)
        url = serve(page, host, port, open_browser=not no_browser)
        print(f"{url} (stop with Ctrl-C)", flush=True)
        page.block_thread()


def check_extra() -> None:
    """Says what to install where Gradio is missing.

    Raises:
        ImportError: it is.
    """
    if find_spec("gradio") is None:
        raise ImportError('the demo needs Gradio: pip install "visattn[demo]"')


def describe_upload(
    model: ImageCaptioner, upload: dict[str, Any] | None, beams: int, max_words: int
) -> tuple[Description | None, str, str]:
    """What is on a picture, and the text to show with a title above it: the caption, or why there is none.

    Args:
        upload: the "path" of a file, and its "orig_name" on the machine that it comes from; None: there is none.
    """
    if upload is None or not upload.get("path"):
        return None, "", "Caption"
    path = Path(upload["path"])
    try:
        description = describe(model, path, beams, max_words)
    except (ValueError, OSError) as error:
        return None, str(error).replace(str(path), upload.get("orig_name") or path.name), "This cannot be described"
    return description, description.text, "Caption"


def describe(model: ImageCaptioner, path: Path, beams: int, max_words: int) -> Description:
    """The best caption of a picture, and where the model looked for its words.

    Raises:
        FileNotFoundError, ImageFileError: there is no picture that can be read.
    """
    from visattn.data import open_image
    from visattn.interpret import view_of, word_attention
    from visattn.interpret.pictures import enlarge

    assert model.preprocess is not None
    picture = open_image(path)
    image = model.preprocess(picture)[None].to(next(model.parameters()))  # (1, 3, H, W)
    ((caption,),) = model.caption(image, num_beams=beams, max_new_tokens=max_words)
    words = word_attention(model, image, caption.token_ids)
    kept = [word._replace(attention=word.attention.half().cpu()) for word in words]
    return Description(enlarge(view_of(model.preprocess, picture, _side), _side), caption.text, kept)


def looked_at(description: Description, number: int) -> tuple[Image.Image, str]:
    """The picture with the map of a word over it, and a title for it."""
    from visattn.interpret import draw_attention

    word = description.words[number]
    title = f"Where the network looked for “{word.word}”, which it thought {word.probability:.0%} probable"
    return draw_attention(description.view, word.attention), title


def build_page(model: ImageCaptioner, beams: int, max_words: int) -> Any:
    """The page, a `gradio.Blocks`, not yet served."""
    import gradio

    def on_picture(upload: dict[str, Any] | None) -> tuple[Description | None, Any, Any, Any]:
        description, text, title = describe_upload(model, upload, beams, max_words)
        choices = [] if description is None else [(word.word, n) for n, word in enumerate(description.words)]
        return (
            description,
            gradio.Textbox(text, label=title),
            gradio.Radio(choices, value=None, visible=bool(choices)),
            gradio.Image(None if description is None else description.view, label=_unmarked),
        )

    def on_word(description: Description | None, number: int | None) -> Any:
        if description is None or number is None:
            return gradio.skip()
        picture, title = looked_at(description, number)
        return gradio.Image(picture, label=title)

    with gradio.Blocks(title="visattn", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown(f"# Captions, and where each word looked\n{_introduction}")
        described = gradio.State(None, time_to_live=3600)
        with gradio.Row():
            picture = gradio.Image(
                label="Picture",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                height=420,
                elem_id="picture",
            )
            looked = gradio.Image(
                label=_unmarked,
                type="pil",
                format="png",
                interactive=False,
                buttons=[],
                height=420,
                elem_id="looked",
            )
        text = gradio.Textbox(label="Caption", interactive=False, elem_id="caption")
        words = gradio.Radio([], label="Words", visible=False, elem_id="words")
        hidden: dict[str, Any] = {"api_visibility": "private", "trigger_mode": "always_last"}
        # Without preprocessing the file comes as it is, for the one door that opens pictures.
        picture.change(on_picture, picture, [described, text, words, looked], preprocess=False, **hidden)
        words.input(on_word, [described, words], looked, show_progress="hidden", **hidden)
    return page


def serve(page: Any, host: str, port: int | None, *, open_browser: bool) -> str:
    """Serves the page in threads of its own, and gives its address.

    Raises:
        ValueError: the address or port is not to be had.
    """
    import gradio

    fonts = ["system-ui", "sans-serif"]  # not those that Gradio's themes fetch from the internet
    try:
        _, url, _ = page.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            run_history=False,
            footer_links=[],
            show_error=True,
            max_file_size="100mb",
            state_session_capacity=100,
            theme=gradio.themes.Default(font=fonts, font_mono=["monospace"]),
        )
    except OSError as error:
        place = "a free port" if port is None else f"port {port}"
        raise ValueError(f"{place} at {host} is not to be had: {str(error).partition('. ')[0]}") from error
    return url
