"""Fields that a pretraining configuration does not use: their values may be out of range."""

from simfle.config.schema import ModelConfig, PretrainConfig

CONTRASTIVE = "model.contrastive"
QUEUE_AND_PROTOTYPES = tuple(
    f"{CONTRASTIVE}.{name}"
    for name in ("queue_size", "shuffle_bn_splits", "prototypes", "sinkhorn_epsilon", "sinkhorn_iterations")
)
EMA = ("model.ema_momentum", "model.ema_schedule")
DECORRELATION = "model.decorrelation_weight"
SIMFLE = ("model.mask_groups", "model.grouping_init", "model.distillation", "model.facemae.masking")
# A method that is not listed uses all fields.
UNUSED_BY_METHOD: dict[str, tuple[str, ...]] = {
    "simfle": (CONTRASTIVE,),
    "byol": (CONTRASTIVE, *SIMFLE),
    "simsiam": (DECORRELATION, CONTRASTIVE, *EMA, *SIMFLE),
    "simclr": (DECORRELATION, *EMA, *SIMFLE),
    "moco": (DECORRELATION, *SIMFLE),
    "mocov3": (DECORRELATION, *QUEUE_AND_PROTOTYPES, *SIMFLE),
    "swav": (DECORRELATION, *EMA, *SIMFLE),
    "vicreg": (DECORRELATION, CONTRASTIVE, *EMA, *SIMFLE),
    "mae": (DECORRELATION, CONTRASTIVE, *EMA, *SIMFLE),
    "dino": (DECORRELATION, CONTRASTIVE, *SIMFLE),
    "care": (DECORRELATION, CONTRASTIVE, *SIMFLE),
    "fra": (DECORRELATION, *SIMFLE),
}


def unused_model_fields(model: ModelConfig) -> tuple[str, ...]:
    """Return the dotted names of model fields and groups that the method does not use."""
    is_byol = model.method == "simfle" and not model.facemae.enabled
    return UNUSED_BY_METHOD.get("byol" if is_byol else model.method, ())


def unused_fields(config: PretrainConfig) -> list[str]:
    """Return the dotted names of fields and groups that a run with this configuration does not use."""
    data = config.data
    unused = list(unused_model_fields(config.model))
    if data.resampled or not any("://" in place for place in data.shards):
        unused.append("data.cache_gb")
    if data.resampled:  # a stream may have no shuffle window
        unused.append("data.shuffle_window")
    if not config.train.profile:
        unused += ["train.profile_steps", "train.profile_ranks"]
    return unused
