"""Names of `transformers.TrainingArguments`, old and new, and what they are called here.

Each maps to (our setting or "", a note). An empty setting means that there is nothing to set, and the note says why.
Covers every field of the releases 4.0 to 5.23, because recipes on the web still use all of them.
"""

from __future__ import annotations

_AUTOMATIC = "done without a setting"
_TOKENS = "the loss is a sum over tokens divided by their number"
_DEVICES = "devices and processes are set by torchrun or accelerate launch"
_SAFE = "checkpoints are always safetensors with a manifest"
_FULL = "kernels are chosen by what this machine has, or by the probe"
_LOCAL = "a run stays in its directory; push model/ with `hf upload` when you want to"
_MEMORY = "the memory probe and its back-off do this"
_LOADER = "blocks are read from a memory map; there are no loader workers to set"
_ADAMW = "the optimizer is AdamW"
_LOG = "metrics.jsonl and tensorboard/ in the run directory hold every number"
_FULL_RUN = "evaluation measures all of the held-out text, and sums are exact"
_REPRODUCIBLE = "the same seed gives the same weights already"

TRAINER_NAMES: dict[str, tuple[str, str]] = {
    # where things go
    "output_dir": ("out", ""),
    "overwrite_output_dir": ("overwrite", ""),
    "logging_dir": ("", "TensorBoard files are in tensorboard/ of the run directory"),
    "run_name": ("name", ""),
    "project": ("name", ""),
    "report_to": ("tensorboard", "true or false"),
    # how long
    "num_train_epochs": ("epochs", ""),
    "do_train": ("", "`finetale train` trains"),
    "do_eval": ("", "held-out text is always evaluated; `finetale evaluate` does only that"),
    "do_predict": ("", "use `finetale generate`"),
    "evaluate_during_training": ("eval_every", "steps"),
    # batch
    "per_device_train_batch_size": ("micro_batch_size", "and batch_size is the whole step's, over all devices"),
    "per_gpu_train_batch_size": ("micro_batch_size", "and batch_size is the whole step's, over all devices"),
    "per_device_eval_batch_size": ("micro_batch_size", "evaluation uses the same"),
    "per_gpu_eval_batch_size": ("micro_batch_size", "evaluation uses the same"),
    "gradient_accumulation_steps": ("batch_size", "batch_size = micro batch x accumulation x devices"),
    "eval_accumulation_steps": ("", _FULL_RUN),
    "auto_find_batch_size": ("", _MEMORY),
    "average_tokens_across_devices": ("", _TOKENS),
    "num_items_in_batch": ("", _TOKENS),
    "split_batches": ("batch_size", "always over all devices"),
    # optimizer and schedule
    "lr": ("learning_rate", ""),
    "lr_scheduler_type": ("schedule", "cosine, linear or constant"),
    "lr_scheduler_kwargs": ("final_learning_rate_ratio", ""),
    "warmup_ratio": ("warmup_steps", "a value below 1 is a share of all steps"),
    "optim": ("", _ADAMW),
    "optim_args": ("", _ADAMW),
    "optim_target_modules": ("", _ADAMW),
    "adafactor": ("", _ADAMW),
    "label_smoothing_factor": ("", "not offered: the loss is the one that perplexity is made of"),
    "neftune_noise_alpha": ("dropout", "noise on embeddings is not offered"),
    # precision and speed
    "fp16": ("precision", "fp16 is not offered; bf16 needs no loss scaling"),
    "bf16": ("precision", "precision: bf16"),
    "bf16_full_eval": ("precision", "evaluation uses the same"),
    "fp16_full_eval": ("precision", "evaluation uses the same"),
    "fp16_backend": ("precision", ""),
    "fp16_opt_level": ("precision", ""),
    "half_precision_backend": ("precision", ""),
    "mp_parameters": ("", _DEVICES),
    "tf32": ("precision", "fp32 or bf16"),
    "activation_checkpointing": ("gradient_checkpointing", ""),
    "activation_checkpointing_kwargs": ("gradient_checkpointing", ""),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", ""),
    "torch_compile": ("compile", "on, off, or what the probe finds faster"),
    "torch_compile_backend": ("compile", ""),
    "torch_compile_mode": ("compile", ""),
    "torchdynamo": ("compile", ""),
    "jit_mode_eval": ("", _FULL),
    "use_ipex": ("", _FULL),
    "use_liger_kernel": ("speed", "the loss never keeps the logits"),
    "liger_kernel_config": ("speed", ""),
    "use_cache": ("", "off while training, on while generating"),
    "torch_empty_cache_steps": ("", _MEMORY),
    "no_cuda": ("", "hide the GPU with CUDA_VISIBLE_DEVICES="),
    "use_cpu": ("", "hide the GPU with CUDA_VISIBLE_DEVICES="),
    "use_mps_device": ("", _FULL),
    "xpu_backend": ("", _DEVICES),
    # logging
    "logging_strategy": ("log_every", "steps"),
    "logging_steps": ("log_every", ""),
    "logging_first_step": ("log_every", "the first step is always logged"),
    "logging_nan_inf_filter": ("", "a loss that is not finite stops the run; it is never hidden"),
    "log_on_each_node": ("", _LOG),
    "log_level": ("", "use --quiet for less"),
    "log_level_replica": ("", "only the first process prints"),
    "disable_tqdm": ("", "without a terminal there are plain lines; --quiet prints less"),
    "include_num_input_tokens_seen": ("", "metrics.jsonl always holds the tokens so far"),
    "include_tokens_per_second": ("", "metrics.jsonl always holds tokens_per_second"),
    "skip_memory_metrics": ("", _LOG),
    "debug": ("", _LOG),
    "trackio_space_id": ("", _LOG),
    "trackio_bucket_id": ("", _LOG),
    "trackio_static_space_id": ("", _LOG),
    # evaluation
    "evaluation_strategy": ("eval_every", "steps; left out: once an epoch"),
    "eval_strategy": ("eval_every", "steps; left out: once an epoch"),
    "eval_steps": ("eval_every", ""),
    "eval_delay": ("eval_every", ""),
    "eval_on_start": ("", "the base model is always evaluated first"),
    "prediction_loss_only": ("", _FULL_RUN),
    "eval_do_concat_batches": ("", _FULL_RUN),
    "eval_use_gather_object": ("", _FULL_RUN),
    "batch_eval_metrics": ("", _FULL_RUN),
    "include_for_metrics": ("", _FULL_RUN),
    "include_inputs_for_metrics": ("", _FULL_RUN),
    "past_index": ("", _FULL_RUN),
    "label_names": ("", "targets are the next tokens"),
    "load_best_model_at_end": ("", "model/ always is the best by validation loss"),
    "metric_for_best_model": ("", "the best model is the one with the lowest validation loss"),
    "greater_is_better": ("", "the best model is the one with the lowest validation loss"),
    "early_stopping_patience": ("patience", ""),
    "early_stopping_threshold": ("patience", ""),
    # checkpoints
    "save_strategy": ("save_every", "steps; left out: at every evaluation"),
    "save_steps": ("save_every", ""),
    "save_total_limit": ("keep_checkpoints", ""),
    "save_safetensors": ("", _SAFE),
    "save_only_model": ("", _SAFE),
    "save_on_each_node": ("", _SAFE),
    "enable_jit_checkpoint": ("", "SIGTERM and Ctrl-C always save a checkpoint"),
    "resume_from_checkpoint": ("", "use `finetale resume DIR`"),
    "ignore_data_skip": ("", "a resumed run goes on at the very next block"),
    "restore_callback_states_from_checkpoint": ("", "use `finetale resume DIR`"),
    # hub
    "push_to_hub": ("", _LOCAL),
    "push_to_hub_model_id": ("", _LOCAL),
    "push_to_hub_organization": ("", _LOCAL),
    "push_to_hub_token": ("", _LOCAL),
    "hub_token": ("", "set HF_TOKEN in the environment"),
    "hub_private_repo": ("", _LOCAL),
    "hub_model_id": ("", _LOCAL),
    "hub_strategy": ("", _LOCAL),
    "hub_always_push": ("", _LOCAL),
    "hub_revision": ("", _LOCAL),
    # seeds
    "data_seed": ("seed", ""),
    "full_determinism": ("seed", _REPRODUCIBLE),
    # loader
    "dataloader_drop_last": ("", "no block is ever dropped"),
    "dataloader_num_workers": ("", _LOADER),
    "dataloader_pin_memory": ("", _LOADER),
    "dataloader_persistent_workers": ("", _LOADER),
    "dataloader_prefetch_factor": ("", _LOADER),
    "dataloader_multiprocessing_context": ("", _LOADER),
    "dataloader_in_order": ("", _LOADER),
    "remove_unused_columns": ("text_column", "only the text column is read"),
    "group_by_length": ("", "documents are packed into full blocks"),
    "train_sampling_strategy": ("", "documents are packed into full blocks, shuffled by seed"),
    "length_column_name": ("", "documents are packed into full blocks"),
    "max_seq_length": ("block_size", "longer documents are cut into blocks, not truncated"),
    "max_length": ("block_size", "longer documents are cut into blocks, not truncated"),
    # many devices
    "local_rank": ("", _DEVICES),
    "tpu_num_cores": ("", _DEVICES),
    "tpu_metrics_debug": ("", _DEVICES),
    "sharded_ddp": ("", _DEVICES),
    "deepspeed": ("", _DEVICES),
    "fsdp": ("", _DEVICES),
    "fsdp_config": ("", _DEVICES),
    "fsdp_min_num_params": ("", _DEVICES),
    "fsdp_transformer_layer_cls_to_wrap": ("", _DEVICES),
    "accelerator_config": ("", _DEVICES),
    "parallelism_config": ("", _DEVICES),
    "dispatch_batches": ("", _DEVICES),
    "ddp_find_unused_parameters": ("", _DEVICES),
    "ddp_bucket_cap_mb": ("", _DEVICES),
    "ddp_broadcast_buffers": ("", _DEVICES),
    "ddp_static_graph": ("", _DEVICES),
    "ddp_backend": ("", _DEVICES),
    "ddp_timeout": ("", _DEVICES),
    "ray_scope": ("", "hyper-parameter search is not offered"),
}
"""Keys that keep their name here (learning_rate, weight_decay, adam_beta1, max_grad_norm, seed …) need no entry."""
