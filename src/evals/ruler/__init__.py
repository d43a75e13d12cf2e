"""RULER (arXiv 2404.06654): 13 synthetic long-context tasks, made for the model's tokenizer.

`samples_of` makes a task's prompts, which fill their length exactly. `score` scores an answer.
"""

from src.evals.ruler.matching import score
from src.evals.ruler.material import Material, Question, QuestionSet, sentences_of
from src.evals.ruler.sample import RulerError, Sample
from src.evals.ruler.tasks import TASKS, VERSION, check_names, depth_samples, samples_of

__all__ = [
    "TASKS",
    "VERSION",
    "Material",
    "Question",
    "QuestionSet",
    "RulerError",
    "Sample",
    "check_names",
    "depth_samples",
    "samples_of",
    "score",
    "sentences_of",
]
