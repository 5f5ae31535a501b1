"""Names that other tools use for simfle's configuration fields, for hints about unknown keys."""

import difflib
from collections.abc import Sequence

# Field -> its names in timm, lightly, dinov2, torchtitan, DeepSpeed, transformers, PyTorch Lightning.
ALIASES = {
    "data.shards": "data data_dir data_path dataset dataset_path train_dir root input",
    "data.decode_threads": "num_workers workers num_threads dataloader_num_workers n_workers threads",
    "data.prefetch_batches": "prefetch prefetch_factor dataloader_prefetch_factor",
    "data.cache_dir": "cache",
    "views.size": "img_size image_size input_size crop_size resolution",
    "views.scale": "crop_scale min_scale rrc_scale",
    "views.color_jitter_prob": "color_jitter jitter cj_prob",
    "views.grayscale_prob": "greyscale grayscale random_gray_scale",
    "model.method": "method ssl_method algorithm",
    "model.backbone": "arch model_name encoder architecture",
    "model.init": (
        "init init_from init_weights init_ckpt init_checkpoint pretrained pretrained_weights pretrained_path "
        "ckpt_path resume_from resume_from_checkpoint finetune_from load_from initial_checkpoint weights checkpoint"
    ),
    "model.ema_momentum": "ema ema_decay ema_m momentum_teacher teacher_momentum moco_m",
    "model.activation_checkpointing": "gradient_checkpointing grad_checkpointing activation_checkpoint recompute",
    "model.compile": "torch_compile torchcompile",
    "model.facemae.mask_ratio": "mask_ratio",
    "model.facemae.patch_size": "patch_size patch",
    "model.contrastive.temperature": "tau",
    "model.dino.student_temperature": "student_temp",
    "model.dino.teacher_temperature": "teacher_temp",
    "model.dino.warmup_teacher_temperature": "warmup_teacher_temp",
    "model.dino.warmup_fraction": "warmup_teacher_temp_epochs",
    "model.dino.frozen_fraction": "freeze_last_layer",
    "optim.name": "optimizer opt optim",
    "optim.lr": "lr learning_rate base_lr blr max_lr",
    "optim.weight_decay": "wd weight_decay",
    "optim.momentum": "sgd_momentum",
    "optim.betas": "adam_betas opt_betas adam_beta1 adam_beta2",
    "optim.warmup_steps": "warmup warmup_epochs warmup_steps num_warmup_steps warmup_ratio",
    "optim.max_grad_norm": "clip clip_grad clip_grad_norm max_norm gradient_clip_val gradient_clipping grad_clip",
    "train.run_dir": "run output_dir out_dir save_dir log_dir logdir default_root_dir out output exp_name",
    "train.seed": "seed random_seed manual_seed",
    "train.epochs": "epochs num_epochs num_train_epochs max_epochs",
    "train.steps": "steps max_steps num_steps total_steps train_steps training_steps iterations max_iters",
    "train.extend": "extend continue continue_training extra_steps",
    "train.global_batch": "batch_size batch train_batch_size global_batch_size total_batch_size",
    "train.micro_batch": (
        "micro_batch_size batch_size_per_gpu per_gpu_batch_size per_device_train_batch_size local_batch_size "
        "train_micro_batch_size_per_gpu accum_iter gradient_accumulation_steps grad_accum_steps accumulate_grad_batches"
    ),
    "train.zero_stage": "zero deepspeed zero_optimization stage",
    "train.precision": "amp fp16 bf16 dtype mixed_precision use_amp use_fp16 precision",
    "train.sync_batchnorm": "sync_bn sync_bn_stats sync_batchnorm",
    "train.device": "device accelerator",
    "train.hang_timeout": "timeout ddp_timeout nccl_timeout",
    "train.log_every": "log_freq log_interval logging_steps print_freq log_every_n_steps log_steps",
    "train.checkpoint_every": (
        "save_freq save_every save_steps save_interval checkpoint_freq checkpoint_interval ckpt_freq saveckp_freq "
        "save_checkpoint_freq"
    ),
    "train.keep_checkpoints": "keep save_total_limit save_top_k keep_latest_k max_to_keep checkpoint_hist",
    "train.stop_after_step": "stop_after",
    "bootstrap_samples": "bootstrap n_bootstrap num_bootstrap",
    "image_size": "size img_size input_size crop_size resolution",
    "forward_batch": "batch_size batch eval_batch_size",
    "threads": "num_workers workers num_threads",
    "backbones": "checkpoint weights pretrained",
    "out": "output_dir out_dir save_dir results_dir",
    "seeds": "seed",
    "local_scratch": "scratch tmpdir tmp_dir",
    "env": "environment",
    "gpus_per_node": "gpus ngpus num_gpus gpus_per_task nproc_per_node devices",
    "nodes": "num_nodes nnodes n_nodes",
    "time": "timeout timeout_min time_limit walltime",
}
BY_NAME: dict[str, list[str]] = {}
for _field, _names in ALIASES.items():
    for _name in _names.split():
        BY_NAME.setdefault(_name, []).append(_field)


def nearest_key(key: str, known: Sequence[str]) -> str:
    """Find the field that was most likely meant by an unknown key.

    Args:
        key: dotted name as typed, such as lr or train.batch_size.
        known: dotted names of the existing fields.

    Returns:
        A field of this name in another group, the field of an alias, or the field with the most similar name; "" if
        there is none.
    """
    last = key.rpartition(".")[2].lower().replace("-", "_")
    if near := difflib.get_close_matches(key, known, n=1, cutoff=0.9):
        return near[0]
    for field in BY_NAME.get(last, ()):
        if field in known:
            return field
    same = [field for field in known if field.rpartition(".")[2] == last]
    if len(same) == 1:
        return same[0]
    return next(iter(difflib.get_close_matches(key, known, n=1, cutoff=0.5)), "")
