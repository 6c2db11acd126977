"""Seeing attention: the weights of every module, where a network looks for its answer, and pictures of both."""

from visattn.interpret.pictures import draw_attention, prediction_grid
from visattn.interpret.record import record_attention
from visattn.interpret.relevance import attention_heatmap, attention_rollout

__all__ = ["attention_heatmap", "attention_rollout", "draw_attention", "prediction_grid", "record_attention"]
