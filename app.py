"""Start the studio: ``python app.py``. See ``python app.py --help``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from studio.auth import Sessions, find_password, random_password
from studio.context import Studio
from studio.jobs import Supervisor
from studio.listen import DEFAULT_PORT, bind, is_loopback
from studio.projects import Workspace
from trainer.contract.errors import UserError


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.py", description="A browser-based LoRA training studio.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, help=f"port (default: the first free one from {DEFAULT_PORT})")
    parser.add_argument(
        "--workspace",
        type=Path,
        default=Path("workspace"),
        help="folder of projects and runs (default: ./%(default)s)",
    )
    parser.add_argument(
        "--password-file",
        type=Path,
        help="file that holds the password; STUDIO_PASSWORD works too. Beyond this machine there is always "
        "one: without either, a random one is made and printed",
    )
    parser.add_argument("--demo", action="store_true", help="open a prepared project")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to 65535")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises UserError for what keeps the studio from starting."""
    public = not is_loopback(options.host)
    password, warnings = find_password(options.password_file)
    generated = public and password is None
    if generated:
        password = random_password()
    listener = bind(options.host, options.port)
    port = listener.getsockname()[1]
    try:
        workspace = Workspace(options.workspace)
        studio = Studio(workspace, Supervisor(workspace), public, has_password=password is not None)
    except OSError as error:
        raise UserError(
            f"The workspace {options.workspace} cannot be made ({error.strerror}); "
            "choose another with --workspace."
        ) from None

    # Read by Gradio when it is imported. What a browser uploads goes to the disk of the workspace, as
    # /tmp is small on rented machines.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads.folder)
    from studio.demo import prepare_demo
    from studio.pages.shell import build_app
    from studio.server import create_app, serve
    from studio.theme import HEAD, THEME

    if options.demo:
        studio.start_project = prepare_demo(workspace).id
    sessions = Sessions(workspace.root / "sessions.json", password) if password is not None else None
    app = create_app(studio, build_app(studio), sessions=sessions, port=port, theme=THEME, head=HEAD)

    def announce() -> None:
        name = "127.0.0.1" if options.host in ("0.0.0.0", "::", "localhost") else options.host
        name = f"[{name}]" if ":" in name else name
        query = f"/?project={studio.start_project}" if studio.start_project else ""
        for warning in warnings:
            print(f"Warning: {warning}", flush=True)
        if generated:
            print(f"Password (made for this start): {password}", flush=True)
        elsewhere = " and at this machine's other addresses" if options.host in ("0.0.0.0", "::") else ""
        print(f"LoRA Studio is ready at http://{name}:{port}{query}{elsewhere}", flush=True)
        print("Ctrl-C ends the studio; a training goes on without it.", flush=True)

    studio.jobs.watch()
    serve(app, listener, announce)


def main() -> int:
    try:
        run(arguments().parse_args())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print()  # after the terminal's ^C
    # Also without the exception: a studio started in the background of a script ignores SIGINT itself,
    # and the server still hears it.
    print("The studio has ended.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
