#!/bin/bash
# A long command, with most of what people write.
accelerate launch --num_cpu_threads_per_process=2 --mixed_precision=bf16 ./sdxl_train_network.py \
  --pretrained_model_name_or_path=/models/sd_xl_base_1.0.safetensors --vae=madebyollin/sdxl-vae-fp16-fix \
  --train_data_dir=/data/dog --reg_data_dir=/data/dogs --resolution=1024,1024 --output_dir=/out --output_name=dog \
  --network_module=networks.lora --network_dim=32 --network_alpha=16 --network_dropout=0.1 \
  --network_args "conv_dim=8" "conv_alpha=4" "rank_dropout=0.1" "module_dropout=0.1" "loraplus_unet_lr_ratio=16" \
  --unet_lr=1e-4 --text_encoder_lr=5e-5 --lr_scheduler=cosine_with_restarts --lr_scheduler_num_cycles=3 \
  --lr_warmup_steps=100 --lr_decay_steps=0 --lr_scheduler_power=1 --optimizer_type=AdamW8bit \
  --optimizer_args "weight_decay=0.05" "betas=0.9,0.99" --max_train_steps=2000 --train_batch_size=4 \
  --gradient_accumulation_steps=2 --gradient_checkpointing --max_grad_norm=1.0 --mixed_precision=bf16 \
  --full_bf16 --xformers --seed=42 --no_half_vae --clip_skip=1 --max_token_length=75 --cache_latents \
  --cache_latents_to_disk --enable_bucket --min_bucket_reso=512 --max_bucket_reso=2048 --bucket_reso_steps=64 \
  --bucket_no_upscale --caption_extension=.txt --shuffle_caption --keep_tokens=1 --caption_dropout_rate=0.05 \
  --caption_tag_dropout_rate=0.1 --caption_separator=, --flip_aug --min_snr_gamma=5 --noise_offset=0.0357 \
  --loss_type=huber --huber_schedule=snr --huber_c=0.1 --debiased_estimation_loss --prior_loss_weight=0.8 \
  --min_timestep=0 --max_timestep=1000 --scale_weight_norms=1 --masked_loss --save_every_n_steps=200 \
  --save_last_n_steps=600 --save_model_as=safetensors --save_precision=bf16 --save_state --logging_dir=/logs \
  --log_with=tensorboard --sample_prompts="a dog in the park --w 1024 --h 768 --s 28 --l 7 --d 1 --n ugly" \
  --sample_every_n_steps=200 --sample_sampler=euler_a --sample_at_first --persistent_data_loader_workers \
  --max_data_loader_n_workers=2 --lowram --training_comment="trigger: zwx" --validation_split=0.1 \
  --validate_every_n_steps=100 --multires_noise_iterations=6 --multires_noise_discount=0.3 --ip_noise_gamma=0.1
