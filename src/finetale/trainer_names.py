"""Names of settings in other tools, and what they are called here: one table for flags, settings files and Python.

It covers every field of `transformers.TrainingArguments` of the releases 4.0 to 5.23, because recipes on the web still
use all of them, and the names of other trainers and samplers that people type most.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple


class Name(NamedTuple):
    """What a name of another tool is here.

    Attributes:
        setting: our setting; empty if there is none, and the note gives the reason.
        note: what differs.
        value: the value to write; "{}" keeps the one that was given, "" leaves it out because its meaning differs.
        instead: another of our settings, for commands that do not have the first.
    """

    setting: str
    note: str = ""
    value: str = "{}"
    instead: str = ""

    def written(self, value: object, ours: str) -> str:
        """Return the value of `ours` that corresponds to `value`; empty if it can't be derived."""
        if self.value == "{}":
            return str(value)
        off = str(value).lower() in ("false", "no", "off", "0", "none")
        return "" if ours != self.setting or off else self.value

    def among(self, known: Container[str]) -> str:
        """Return the known setting of this meaning, or `setting` if none is known."""
        return self.instead if self.instead in known and self.setting not in known else self.setting


def plain_name(name: str) -> str:
    """Return a name as settings are written: `--max-length`, `max_length` and `maxLength` are one name."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("-")).replace("-", "_").lower()


def find_name(name: str) -> Name | None:
    """Return what a name of another tool means here."""
    return TRAINER_NAMES.get(plain_name(name))


_TOKENS = "the loss is a sum over tokens divided by their number"
_SHARD = "weights are divided among the processes with shard: true"
_DEVICES = "devices and processes are set by --processes, torchrun or accelerate launch"
_SAFE = "checkpoints are always safetensors with a manifest"
_FULL = "the fastest kernels of this machine are used"
_LOCAL = "a run stays in its directory; push model/ with `hf upload` when you want to"
_MEMORY = "the memory probe does this"
_LOADER = "blocks are read from a memory map; there are no loader workers to set"
_ADAMW = "the optimizer is AdamW"
_LOG = "metrics.jsonl and tensorboard/ in the run directory hold every number"
_FULL_RUN = "evaluation always computes exact sums over tokens"
_BLOCKS = "longer documents are cut into blocks, not truncated"
_WEIGHTS = "weights stay in fp32; --precision bf16 computes in bf16"
_DEVICE = "the fastest device is used; hide GPUs with CUDA_VISIBLE_DEVICES="
_SOURCES = "texts are the arguments of the command, without a flag"
_REPRODUCIBLE = (
    "the same seed gives the same weights on one machine with --no-probe, or with a run's config.yaml, which has what "
    "the probe chose"
)

TRAINER_NAMES: dict[str, Name] = {
    # where things go
    "output_dir": Name("out"),
    "overwrite_output_dir": Name("overwrite"),
    "logging_dir": Name("", "TensorBoard files are in tensorboard/ of the run directory"),
    "run_name": Name("name"),
    "project": Name("name"),
    "report_to": Name("track", "wandb, mlflow or trackio; TensorBoard's files are written where it is installed"),
    # how long
    "num_train_epochs": Name("epochs"),
    "do_train": Name("", "`finetale train` trains"),
    "do_eval": Name("", "held-out text is always evaluated; `finetale evaluate` does only that"),
    "do_predict": Name("", "use `finetale generate`"),
    "evaluate_during_training": Name("eval_every", "a number of steps", value=""),
    # batch
    "per_device_train_batch_size": Name("micro_batch_size", "and batch_size is the whole step's, over all devices"),
    "per_gpu_train_batch_size": Name("micro_batch_size", "and batch_size is the whole step's, over all devices"),
    "per_device_eval_batch_size": Name("micro_batch_size", "evaluation uses the same"),
    "per_gpu_eval_batch_size": Name("micro_batch_size", "evaluation uses the same"),
    "gradient_accumulation_steps": Name("batch_size", "batch_size = micro batch x accumulation x devices", value=""),
    "eval_accumulation_steps": Name("", _FULL_RUN),
    "auto_find_batch_size": Name("", _MEMORY),
    "average_tokens_across_devices": Name("", _TOKENS),
    "num_items_in_batch": Name("", _TOKENS),
    "split_batches": Name("batch_size", "always over all devices", value=""),
    # optimizer and schedule
    "lr": Name("learning_rate"),
    "lr_scheduler_type": Name("schedule", "cosine, linear or constant"),
    "lr_scheduler_kwargs": Name("final_learning_rate_ratio", value=""),
    "warmup_ratio": Name("warmup_steps", "a value below 1 is a share of all steps"),
    "optim": Name("", _ADAMW),
    "optim_args": Name("", _ADAMW),
    "optim_target_modules": Name("", _ADAMW),
    "adafactor": Name("", _ADAMW),
    "label_smoothing_factor": Name("", "not offered, because perplexity is computed from the loss"),
    "neftune_noise_alpha": Name("dropout", "noise on embeddings is not offered", value=""),
    # precision and speed
    "fp16": Name("precision", "fp16 is not offered; bf16 needs no loss scaling", value="bf16"),
    "bf16": Name("precision", value="bf16"),
    "bf16_full_eval": Name("precision", "evaluation uses the same", value=""),
    "fp16_full_eval": Name("precision", "evaluation uses the same", value=""),
    "fp16_backend": Name("precision", value=""),
    "fp16_opt_level": Name("precision", value=""),
    "half_precision_backend": Name("precision", value=""),
    "mp_parameters": Name("", _DEVICES),
    "tf32": Name("precision", "fp32 or bf16", value=""),
    "activation_checkpointing": Name("gradient_checkpointing"),
    "activation_checkpointing_kwargs": Name("gradient_checkpointing", value=""),
    "gradient_checkpointing_kwargs": Name("gradient_checkpointing", value=""),
    "torch_compile": Name("compile", "on, off, or what the probe finds faster", value="on"),
    "torch_compile_backend": Name("compile", value=""),
    "torch_compile_mode": Name("compile", value=""),
    "torchdynamo": Name("compile", value="on"),
    "jit_mode_eval": Name("", _FULL),
    "use_ipex": Name("", _FULL),
    "use_liger_kernel": Name("speed", "the loss never keeps the logits", value=""),
    "liger_kernel_config": Name("speed", value=""),
    "use_cache": Name("", "off while training, on while generating"),
    "torch_empty_cache_steps": Name("", _MEMORY),
    "no_cuda": Name("", "hide the GPU with CUDA_VISIBLE_DEVICES="),
    "use_cpu": Name("", "hide the GPU with CUDA_VISIBLE_DEVICES="),
    "use_mps_device": Name("", _FULL),
    "xpu_backend": Name("", _DEVICES),
    # logging
    "logging_strategy": Name("log_every", "a number of steps", value=""),
    "logging_steps": Name("log_every"),
    "logging_first_step": Name("log_every", "the first step is always logged", value=""),
    "logging_nan_inf_filter": Name("", "a loss that is not finite stops the run; it is never hidden"),
    "log_on_each_node": Name("", _LOG),
    "log_level": Name("", "use --quiet for less"),
    "log_level_replica": Name("", "only the first process prints"),
    "disable_tqdm": Name("", "without a terminal, progress is printed as plain lines; --quiet prints less"),
    "include_num_input_tokens_seen": Name("", "metrics.jsonl always holds the tokens so far"),
    "include_tokens_per_second": Name("", "metrics.jsonl always holds tokens_per_second"),
    "skip_memory_metrics": Name("", _LOG),
    "debug": Name("", _LOG),
    "trackio_space_id": Name("track", "the Space is in TRACKIO_SPACE_ID", value="trackio"),
    "trackio_bucket_id": Name("track", "the bucket is in TRACKIO_BUCKET_ID", value="trackio"),
    "trackio_static_space_id": Name("", _LOG),
    # evaluation
    "evaluation_strategy": Name("eval_every", "a number of steps; by default once per epoch", value=""),
    "eval_strategy": Name("eval_every", "a number of steps; by default once per epoch", value=""),
    "eval_steps": Name("eval_every"),
    "eval_delay": Name("eval_every", value=""),
    "eval_on_start": Name("", "the base model is always evaluated first"),
    "prediction_loss_only": Name("", _FULL_RUN),
    "eval_do_concat_batches": Name("", _FULL_RUN),
    "eval_use_gather_object": Name("", _FULL_RUN),
    "batch_eval_metrics": Name("", _FULL_RUN),
    "include_for_metrics": Name("", _FULL_RUN),
    "include_inputs_for_metrics": Name("", _FULL_RUN),
    "past_index": Name("", _FULL_RUN),
    "label_names": Name("", "targets are the next tokens"),
    "load_best_model_at_end": Name("", "model/ always is the best by validation loss"),
    "metric_for_best_model": Name("", "the best model is the one with the lowest validation loss"),
    "greater_is_better": Name("", "the best model is the one with the lowest validation loss"),
    "early_stopping_patience": Name("patience"),
    "early_stopping_threshold": Name("patience", value=""),
    # checkpoints
    "save_strategy": Name("save_every", "a number of steps; by default at every evaluation", value=""),
    "save_steps": Name("save_every"),
    "save_total_limit": Name("keep_checkpoints"),
    "save_safetensors": Name("", _SAFE),
    "save_only_model": Name("", _SAFE),
    "save_on_each_node": Name("", _SAFE),
    "enable_jit_checkpoint": Name("", "SIGTERM and Ctrl-C always save a checkpoint"),
    "resume_from_checkpoint": Name("", "use `finetale resume DIR`"),
    "ignore_data_skip": Name("", "a resumed run continues with the next block"),
    "restore_callback_states_from_checkpoint": Name("", "use `finetale resume DIR`"),
    # hub
    "push_to_hub": Name("", _LOCAL),
    "push_to_hub_model_id": Name("", _LOCAL),
    "push_to_hub_organization": Name("", _LOCAL),
    "push_to_hub_token": Name("", _LOCAL),
    "hub_token": Name("", "set HF_TOKEN in the environment"),
    "hub_private_repo": Name("", _LOCAL),
    "hub_model_id": Name("", _LOCAL),
    "hub_strategy": Name("", _LOCAL),
    "hub_always_push": Name("", _LOCAL),
    "hub_revision": Name("", _LOCAL),
    # seeds
    "data_seed": Name("seed"),
    "full_determinism": Name("seed", _REPRODUCIBLE, value=""),
    # loader
    "dataloader_drop_last": Name("", "no block is ever dropped"),
    "dataloader_num_workers": Name("", _LOADER),
    "dataloader_pin_memory": Name("", _LOADER),
    "dataloader_persistent_workers": Name("", _LOADER),
    "dataloader_prefetch_factor": Name("", _LOADER),
    "dataloader_multiprocessing_context": Name("", _LOADER),
    "dataloader_in_order": Name("", _LOADER),
    "remove_unused_columns": Name("text_column", "only the text column is read", value=""),
    "group_by_length": Name("", "documents are packed into full blocks"),
    "train_sampling_strategy": Name("", "documents are packed into full blocks, shuffled by seed"),
    "length_column_name": Name("", "documents are packed into full blocks"),
    "max_seq_length": Name("block_size", _BLOCKS, instead="max_new_tokens"),
    "max_length": Name("block_size", _BLOCKS, instead="max_new_tokens"),
    # many devices
    "local_rank": Name("", _DEVICES),
    "tpu_num_cores": Name("", _DEVICES),
    "tpu_metrics_debug": Name("", _DEVICES),
    "sharded_ddp": Name("", _DEVICES),
    "deepspeed": Name("shard", _SHARD, value=""),
    "fsdp": Name("shard", _SHARD, value="true"),
    "fsdp_config": Name("shard", _SHARD, value=""),
    "fsdp_min_num_params": Name("shard", _SHARD, value=""),
    "fsdp_transformer_layer_cls_to_wrap": Name("shard", _SHARD, value=""),
    "accelerator_config": Name("", _DEVICES),
    "parallelism_config": Name("", _DEVICES),
    "dispatch_batches": Name("", _DEVICES),
    "ddp_find_unused_parameters": Name("", _DEVICES),
    "ddp_bucket_cap_mb": Name("", _DEVICES),
    "ddp_broadcast_buffers": Name("", _DEVICES),
    "ddp_static_graph": Name("", _DEVICES),
    "ddp_backend": Name("", _DEVICES),
    "ddp_timeout": Name("", _DEVICES),
    "ray_scope": Name("", "hyper-parameter search is not offered"),
    # names of other trainers, samplers and of short scripts
    "learningrate": Name("learning_rate"),
    "max_lr": Name("learning_rate"),
    "min_lr": Name("final_learning_rate_ratio", "a share of the peak", value=""),
    "lr_scheduler": Name("schedule", "cosine, linear or constant"),
    "lr_schedule": Name("schedule", "cosine, linear or constant"),
    "scheduler": Name("schedule", "cosine, linear or constant"),
    "warmup": Name("warmup_steps"),
    "warmup_iters": Name("warmup_steps"),
    "num_warmup_steps": Name("warmup_steps"),
    "wd": Name("weight_decay"),
    "beta1": Name("adam_beta1"),
    "beta2": Name("adam_beta2"),
    "eps": Name("adam_epsilon"),
    "grad_clip": Name("max_grad_norm"),
    "gradient_clipping": Name("max_grad_norm"),
    "clip_grad_norm": Name("max_grad_norm"),
    "optimizer": Name("", _ADAMW),
    "epoch": Name("epochs"),
    "num_epochs": Name("epochs"),
    "n_epochs": Name("epochs"),
    "steps": Name("max_steps"),
    "num_steps": Name("max_steps"),
    "max_iters": Name("max_steps"),
    "iterations": Name("max_steps"),
    "batch": Name("batch_size"),
    "train_batch_size": Name("micro_batch_size", "and batch_size is the whole step's, over all devices"),
    "eval_batch_size": Name("micro_batch_size", "evaluation uses the same"),
    "grad_accum": Name("batch_size", "batch_size = micro batch x accumulation x devices", value=""),
    "gradient_accumulation": Name("batch_size", "batch_size = micro batch x accumulation x devices", value=""),
    "accumulation_steps": Name("batch_size", "batch_size = micro batch x accumulation x devices", value=""),
    "seq_len": Name("block_size", _BLOCKS, instead="max_new_tokens"),
    "seq_length": Name("block_size", _BLOCKS),
    "max_len": Name("block_size", _BLOCKS, instead="max_new_tokens"),
    "context_length": Name("block_size", _BLOCKS),
    "context_size": Name("block_size", _BLOCKS),
    "ctx_size": Name("block_size", _BLOCKS),
    "mixed_precision": Name("precision", "bf16, fp32 or auto"),
    "dtype": Name("precision", _WEIGHTS, value=""),
    "torch_dtype": Name("precision", _WEIGHTS, value=""),
    "fp32": Name("precision", value="fp32"),
    "float16": Name("precision", "fp16 is not offered; bf16 needs no loss scaling", value="bf16"),
    "half": Name("precision", "fp16 is not offered; bf16 needs no loss scaling", value="bf16"),
    "amp": Name("precision", value="bf16"),
    "load_in_4bit": Name("", _WEIGHTS),
    "load_in_8bit": Name("", _WEIGHTS),
    "quantization": Name("", _WEIGHTS),
    "lora": Name("method", value="lora"),
    "qlora": Name("method", "weights are not quantised", value="lora"),
    "peft": Name("method", value="lora"),
    "use_lora": Name("method", value="lora"),
    "use_peft": Name("method", value="lora"),
    "use_dora": Name("method", value="dora"),
    "use_rslora": Name("rslora"),
    "lora_r": Name("lora_rank"),
    "target_modules": Name("lora_targets"),
    "lora_target_modules": Name("lora_targets"),
    "freeze_layers": Name("freeze"),
    "device": Name("", _DEVICE),
    "device_map": Name("", _DEVICE),
    "gpu": Name("", _DEVICE),
    "gpus": Name("", _DEVICE),
    "cpu": Name("", _DEVICE),
    "cuda": Name("", _DEVICE),
    "flash_attention": Name("attention", "auto takes the fastest", value=""),
    "attn_implementation": Name("attention", "documents, model or auto", value=""),
    "num_workers": Name("", _LOADER),
    "early_stopping": Name("patience", "evaluations without a better loss; it is on, 0 turns it off", value=""),
    "eval_interval": Name("eval_every"),
    "save_interval": Name("save_every"),
    "log_interval": Name("log_every"),
    "save_limit": Name("keep_checkpoints"),
    "resume": Name("", "use `finetale resume DIR`"),
    "checkpoint": Name("", "use `finetale resume DIR`"),
    "output": Name("out"),
    "out_dir": Name("out"),
    "save_dir": Name("out"),
    "save_path": Name("out"),
    "force": Name("overwrite", value=""),
    "wandb": Name("track", value="wandb"),
    "use_wandb": Name("track", value="wandb"),
    "wandb_project": Name("track", "the project is in WANDB_PROJECT", value="wandb"),
    "verbose": Name("", "everything is printed already; --quiet prints less"),
    "model_name": Name("model"),
    "model_name_or_path": Name("model"),
    "model_path": Name("model"),
    "model_id": Name("model"),
    "base_model": Name("model"),
    "pretrained_model_name_or_path": Name("model"),
    "model_revision": Name("revision"),
    "tokenizer_name": Name("tokenizer"),
    "tokenizer_path": Name("tokenizer"),
    "cache": Name("cache_dir"),
    "data": Name("", _SOURCES),
    "dataset": Name("", _SOURCES),
    "dataset_name": Name("", _SOURCES),
    "train_file": Name("", _SOURCES),
    "train_data": Name("", _SOURCES),
    "train_data_file": Name("", _SOURCES),
    "input": Name("", _SOURCES),
    "input_file": Name("", _SOURCES),
    "source": Name("", _SOURCES),
    "validation_file": Name("validation"),
    "eval_file": Name("validation"),
    "val_file": Name("validation"),
    "eval_data_file": Name("validation"),
    "test_file": Name("test"),
    "val_split": Name("validation_fraction"),
    "validation_split": Name("validation_fraction"),
    "validation_split_percentage": Name("validation_fraction", "a share between 0 and 1", value=""),
    "test_size": Name("test_fraction"),
    "text_field": Name("text_column"),
    "dataset_text_field": Name("text_column"),
    "text_key": Name("text_column"),
    "column": Name("text_column"),
    "random_seed": Name("seed"),
    "temp": Name("temperature"),
    "topk": Name("top_k"),
    "topp": Name("top_p"),
    "nucleus": Name("top_p"),
    "minp": Name("min_p"),
    "max_tokens": Name("max_new_tokens"),
    "max_new_token": Name("max_new_tokens"),
    "num_tokens": Name("max_new_tokens"),
    "n_predict": Name("max_new_tokens"),
    "length": Name("max_new_tokens"),
    "num_return_sequences": Name("num_samples"),
    "nsamples": Name("num_samples"),
    "n_samples": Name("num_samples"),
    "samples": Name("num_samples"),
    "repeat_penalty": Name("repetition_penalty"),
    "rep_penalty": Name("repetition_penalty"),
    "no_repeat_ngram": Name("no_repeat_ngram_size"),
    "beams": Name("num_beams"),
    "beam_size": Name("num_beams"),
    "stop_strings": Name("stop"),
    "stop_sequences": Name("stop"),
    "do_sample": Name("temperature", "0 always takes the likeliest token, above 0 it samples", value=""),
    "greedy": Name("temperature", "0 always takes the most likely token", value="0"),
}
"""Keys that keep their name here (learning_rate, weight_decay, adam_beta1, max_grad_norm, seed …) need no entry."""
