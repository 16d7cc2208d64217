"""Pre-trains the demo model from scratch on a CPU and writes it as a StableDiffusionXLPipeline folder.

    python -m demo.pretrain --work /tmp/demo-work --out demo/model

The work folder holds checkpoints, so an interrupted run goes on where it stopped. `--export-only` writes the
model as far as it has come.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline

from demo.pretrain_unet import Generator, new_scheduler, train_generator
from demo.pretrain_vae import train_vae
from demo.text import load_tokenizer, save_tokenizer

VAE_STEPS, GENERATOR_STEPS, DRAWINGS = 1600, 24_000, 16_000


def export(work: Path, out: Path) -> None:
    """Writes the model in `work`, as far as it has come, as a pipeline folder in float16, replacing `out`."""
    tokenizer = load_tokenizer(work / "tokenizer")
    generator = Generator(tokenizer)
    generator.load_state_dict(torch.load(work / "generator.pt", weights_only=True)["ema"])
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        text_encoder=generator.text_encoder,
        text_encoder_2=generator.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=generator.unet,
        scheduler=new_scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    if out.exists():
        shutil.rmtree(out)
    pipeline.to(torch.float16).save_pretrained(out, safe_serialization=True)
    for name in (
        "text_encoder",
        "text_encoder_2",
    ):  # else transformers loads them in float16, unlike the rest
        config = json.loads((out / name / "config.json").read_text())
        (out / name / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n")
    vae_config = json.loads((out / "vae" / "config.json").read_text())
    vae_config.pop("_name_or_path", None)  # the working folder is nobody's business
    (out / "vae" / "config.json").write_text(json.dumps(vae_config, indent=2) + "\n")
    for name in ("tokenizer", "tokenizer_2"):  # the two classic files, smaller than the library's one
        shutil.rmtree(out / name)
        shutil.copytree(work / "tokenizer", out / name)
    megabytes = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    print(json.dumps({"folder": str(out), "megabytes": round(megabytes, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and caches")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="go on from this model folder, its autoencoder kept")
    parser.add_argument("--steps", type=int, default=GENERATOR_STEPS, help="of denoiser and encoders")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="of denoiser and encoders, at its highest")
    parser.add_argument("--export-only", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.export_only:
        save_tokenizer(args.work / "tokenizer")
        if args.start:
            vae = AutoencoderKL.from_pretrained(args.start / "vae", torch_dtype=torch.float32)
            vae.save_pretrained(args.work / "vae")
        else:
            vae = train_vae(args.work, VAE_STEPS, args.seed)
        tokenizer = load_tokenizer(args.work / "tokenizer")
        train_generator(args.work, vae, tokenizer, args.steps, DRAWINGS, args.seed, args.start, args.lr)
    export(args.work, args.out)


if __name__ == "__main__":
    main()
