"""Open-Sora v1.2, which diffusers does not have: network, schedule, pipeline, and the reading of published weights."""

from dit_tracer.models.opensora_checkpoint import CheckpointError, load_transformer
from dit_tracer.models.opensora_network import STDiT3
from dit_tracer.models.opensora_pipeline import OpenSoraPipeline
from dit_tracer.models.opensora_schedule import RectifiedFlowScheduler

__all__ = ["CheckpointError", "OpenSoraPipeline", "RectifiedFlowScheduler", "STDiT3", "load_transformer"]
