"""Seeing attention: the weights of every module, where a network looks for its answer, and pictures of both."""

from visattn.interpret.detection_grid import detection_grid
from visattn.interpret.detection_pictures import draw_detections
from visattn.interpret.layer import Layer, attention_layers, layer_attention
from visattn.interpret.objects import ObjectAttention, object_attention, object_figure
from visattn.interpret.pictures import attention_figure, draw_attention, prediction_grid, view_of, word_figure
from visattn.interpret.precision_recall import precision_recall_figure
from visattn.interpret.questions import AnswerExplanation, QuestionWord, explain_answer
from visattn.interpret.record import record_attention
from visattn.interpret.relevance import attention_heatmap, attention_rollout
from visattn.interpret.words import WordAttention, word_attention

__all__ = [
    "AnswerExplanation",
    "Layer",
    "ObjectAttention",
    "QuestionWord",
    "WordAttention",
    "attention_figure",
    "attention_heatmap",
    "attention_layers",
    "attention_rollout",
    "detection_grid",
    "draw_attention",
    "draw_detections",
    "explain_answer",
    "layer_attention",
    "object_attention",
    "object_figure",
    "precision_recall_figure",
    "prediction_grid",
    "record_attention",
    "view_of",
    "word_attention",
    "word_figure",
]
