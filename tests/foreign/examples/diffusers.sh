export MODEL_NAME="stabilityai/stable-diffusion-xl-base-1.0"
accelerate launch train_dreambooth_lora_sdxl.py \
  --pretrained_model_name_or_path=$MODEL_NAME --pretrained_vae_model_name_or_path="madebyollin/sdxl-vae-fp16-fix" \
  --instance_data_dir="timber" --instance_prompt="a photo of timber dog" --output_dir="out" --mixed_precision="fp16" \
  --resolution=1024 --train_batch_size=1 --gradient_accumulation_steps=4 --learning_rate=1e-4 --lr_scheduler="constant" \
  --lr_warmup_steps=0 --max_train_steps=500 --checkpointing_steps=50 --validation_prompt="timber dog in a bucket" \
  --validation_epochs=25 --seed=0 --report_to=wandb --push_to_hub --use_8bit_adam --enable_xformers_memory_efficient_attention
