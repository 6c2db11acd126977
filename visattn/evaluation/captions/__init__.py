"""The official COCO caption evaluation without Java, and what papers need besides."""

from visattn.evaluation.captions.bleu import bleu
from visattn.evaluation.captions.cider import Cider
from visattn.evaluation.captions.clip_score import ClipScore, ClipScores
from visattn.evaluation.captions.coco import CaptionFileError, evaluate_coco, read_candidates, read_references
from visattn.evaluation.captions.meteor import Meteor
from visattn.evaluation.captions.ptb_tokenizer import tokenize
from visattn.evaluation.captions.rouge import rouge_l
from visattn.evaluation.captions.scores import METRICS, Scores, evaluate
from visattn.evaluation.captions.spice import SpiceUnavailable, spice
from visattn.evaluation.captions.statistics import bootstrap_interval, diversity, paired_test

__all__ = [
    "METRICS",
    "CaptionFileError",
    "Cider",
    "ClipScore",
    "ClipScores",
    "Meteor",
    "Scores",
    "SpiceUnavailable",
    "bleu",
    "bootstrap_interval",
    "diversity",
    "evaluate",
    "evaluate_coco",
    "paired_test",
    "read_candidates",
    "read_references",
    "rouge_l",
    "spice",
    "tokenize",
]
