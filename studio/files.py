"""Routes of a project's pictures and of a run's files. Everything is named by ids that the studio made."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import asdict, astuple
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from dataset_tools.crop import render_crop
from dataset_tools.dataset import ImageRecord, read_caption
from dataset_tools.images import open_image, thumbnail
from dataset_tools.masks import mask_path
from trainer.contract.files import staged

from .checker import Checker
from .context import Studio
from .http import IMMUTABLE, REVALIDATE, json_body, send_file
from .projects import NotFound, Project

THUMB_SIDE = 320
CAPTION_LIMIT = 5000
Kind = Literal["thumb", "crop", "mask"]
VEIL, VEIL_OPACITY = (214, 40, 57), 0.6
SAMPLE_NAME = re.compile(r"s\d{6,9}_p\d{2}\.webp")
DRAWING_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,199}\.webp")
RESULT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors")

# Decoding photos takes a core and tens of MB each; a page that asks for 400 must not take them all.
_rendering = threading.BoundedSemaphore(2)


def file_routes(studio: Studio) -> APIRouter:
    router = APIRouter(prefix="/studio")
    checker = Checker()

    @router.get("/dataset/{project_id}")
    def dataset(request: Request, project_id: str) -> Response:
        """Pictures, captions and findings; ``checking`` says that newer findings are on their way."""
        project = studio.workspace.project(project_id)
        findings, checking = checker.findings(project.root)
        answer = describe(project) | {"findings": [asdict(each) for each in findings], "checking": checking}
        body = json.dumps(answer, ensure_ascii=False).encode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        headers = {"etag": etag, "cache-control": REVALIDATE}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @router.get("/thumb/{project_id}/{image_id}.webp")
    def thumb(request: Request, project_id: str, image_id: str, v: str = "") -> Response:
        """The whole picture, long side 320 px."""
        return _picture(request, studio.workspace.project(project_id), image_id, "thumb", v)

    @router.get("/crop/{project_id}/{image_id}.webp")
    def crop(request: Request, project_id: str, image_id: str, v: str = "") -> Response:
        """What the trainer sees of the picture."""
        return _picture(request, studio.workspace.project(project_id), image_id, "crop", v)

    @router.get("/mask/{project_id}/{image_id}.webp")
    def mask(request: Request, project_id: str, image_id: str, v: str = "") -> Response:
        """Red where the mask keeps the picture from being learnt, to be laid over its thumbnail."""
        return _picture(request, studio.workspace.project(project_id), image_id, "mask", v)

    @router.post("/caption/{project_id}/{image_id}")
    async def caption(request: Request, project_id: str, image_id: str) -> Response:
        text = (await json_body(request)).get("text")
        if not isinstance(text, str):
            raise HTTPException(400, 'Send {"text": "…"}.')
        if len(text) > CAPTION_LIMIT:
            raise HTTPException(400, f"The caption has {len(text)} characters; use at most {CAPTION_LIMIT}.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise HTTPException(400, "The caption holds characters that are no text.") from None
        project = studio.workspace.project(project_id)
        await run_in_threadpool(project.set_caption, image_id, text)
        return JSONResponse({"caption": text.strip()})

    @router.post("/enabled/{project_id}/{image_id}")
    async def enabled(request: Request, project_id: str, image_id: str) -> Response:
        value = (await json_body(request)).get("enabled")
        if not isinstance(value, bool):
            raise HTTPException(400, 'Send {"enabled": true} or {"enabled": false}.')
        project = studio.workspace.project(project_id)
        await run_in_threadpool(project.set_enabled, image_id, value)
        return JSONResponse({"enabled": value})

    @router.get("/sample/{run_id}/{name}")
    def sample(request: Request, run_id: str, name: str) -> Response:
        """A validation image. A resumed run may draw it anew, hence no lasting cache."""
        run = studio.workspace.run(run_id)
        if not SAMPLE_NAME.fullmatch(name):
            raise NotFound("There is no such sample; reload the page.")
        return send_file(request, run.samples / name, "image/webp")

    @router.get("/drawing/{run_id}/{name}")
    def drawing(request: Request, run_id: str, name: str) -> Response:
        """A picture that was asked for after the training. It never changes: another one has another name."""
        run = studio.workspace.run(run_id)
        if not DRAWING_NAME.fullmatch(name):
            raise NotFound("There is no such picture; reload the page.")
        return send_file(request, run.drawings / name, "image/webp", IMMUTABLE)

    @router.get("/download/{run_id}/{name}")
    def download(request: Request, run_id: str, name: str) -> Response:
        """The LoRA, or an export of it, as an attachment."""
        run = studio.workspace.run(run_id)
        if not RESULT_NAME.fullmatch(name):
            raise NotFound("There is no such file to download; reload the page.")
        return send_file(request, run.path / name, "application/octet-stream", download=True)

    return router


def version(record: ImageRecord) -> str:
    """Changes when the picture or its crop does; the ``v`` of its addresses."""
    return hashlib.sha256(f"{record.sha256} {record.crop} {record.bucket}".encode()).hexdigest()[:10]


def mask_version(project: Project, image_id: str) -> str:
    """Changes when the mask of a picture does; "" where it has none."""
    try:
        return f"{mask_path(project.root, image_id).stat().st_mtime_ns:x}"
    except OSError:
        return ""


def describe(project: Project) -> dict[str, Any]:
    """What the photo grid and the caption editor show of a project."""
    dataset = project.dataset()
    images = [
        {
            "id": record.id,
            "file": record.file,
            "name": record.original_name,
            "width": record.width,
            "height": record.height,
            "bucket": record.bucket,
            "crop": record.crop,
            "reason": record.reason,
            "warnings": record.warnings,
            "enabled": record.enabled,
            "repeats": record.repeats,
            "caption": read_caption(project.root, record),
            "v": version(record),
            "mask": mask_version(project, record.id),
        }
        for record in dataset.images
    ]
    buckets = project.buckets()
    return {
        "trigger": dataset.trigger,
        "resolution": buckets.resolution,
        # Frames for other sizes than the recipe now trains at are chosen anew.
        "buckets": " ".join(map(str, astuple(buckets))),
        "stale": any(
            record.bucket not in buckets.sizes(record.width, record.height) for record in dataset.images
        ),
        "images": images,
    }


def _picture(request: Request, project: Project, image_id: str, kind: Kind, asked: str) -> Response:
    """A rendering from the project's cache, made on first use."""
    record = project.record(image_id)
    # A thumbnail shows the whole picture: a changed crop is no reason to draw it again.
    now = mask_version(project, record.id) if kind == "mask" else version(record)
    state = record.sha256[:10] if kind == "thumb" else now
    if not state:
        raise NotFound(f"{record.original_name} has no mask.")
    path = project.root / ".thumbs" / f"{record.id}.{state}.{kind}.webp"
    if not path.exists():
        with _rendering:
            render(project, record, kind, path)
    cache = IMMUTABLE if asked == now else REVALIDATE
    return send_file(request, path, "image/webp", cache)


def render(project: Project, record: ImageRecord, kind: Kind, path: Path) -> None:
    """Draw a picture into the cache, and drop what it replaces there."""
    source = mask_path(project.root, record.id) if kind == "mask" else project.root / record.file
    image = open_image(source, record.original_name).image
    if kind == "mask":
        image, quality = _veil(thumbnail(image, THUMB_SIDE)), 80
    elif kind == "thumb":
        image, quality = thumbnail(image, THUMB_SIDE), 80
    elif record.crop is None or record.bucket is None:
        raise NotFound(f"{record.original_name} has no crop yet.")
    else:
        image, quality = render_crop(image, record.crop, record.bucket), 90
    data = BytesIO()
    image.save(data, "WEBP", quality=quality, method=2)
    old = list(path.parent.glob(f"{record.id}.*.{kind}.webp"))
    with staged(path) as temporary:
        temporary.write_bytes(data.getvalue())
    for file in old:
        if file != path:
            file.unlink(missing_ok=True)


def _veil(mask: Image.Image) -> Image.Image:
    """A red picture that shows where a mask is black."""
    veil = Image.new("RGBA", mask.size, VEIL)
    veil.putalpha(mask.convert("L").point(lambda value: (255 - value) * VEIL_OPACITY))
    return veil
