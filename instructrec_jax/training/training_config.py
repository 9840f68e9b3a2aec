"""The settings of the optimizer, of what else is learned from, and of what a run records."""

from dataclasses import dataclass, field
from typing import Literal

# Named, because --help shows a setting's comment only where its type is a plain name.
Schedule = Literal["cosine", "linear", "constant", "wsd"]
Moments = Literal["float32", "bfloat16"]
RobustMethod = Literal["none", "r_drop", "noise", "freelb"]
Distribution = Literal["uniform", "gaussian"]
UnlabeledMethod = Literal["none", "self_training", "fixmatch", "uda", "pi_model"]


# Biases (also the relative position biases of T5 and MPNet) and norms, as in HuggingFace's Trainer, and temperatures.
# Unlike there, LoRA matrices too: decay would shrink A and B separately, which does not decay the weights W + A B.
# QLoRA's script (Dettmers et al., 2023) does the same.
NO_DECAY = ("bias", "norm", "scale$", "temperature$", "/lora/")


@dataclass
class OptimizerConfig:
    """AdamW and its learning-rate schedule."""

    learning_rate: float | None = None  # peak learning rate; null: 5e-5, with LoRA 2e-4, for new parameters only 1e-3
    head_learning_rate: float | None = None  # peak learning rate of the head; null: the same
    layer_decay: float = 1.0  # learning rate of a layer / that of the layer above; 1: no layer-wise decay
    weight_decay: float = 0.01  # decoupled: each step subtracts learning_rate * weight_decay * parameter
    decay_exclude: list[str] = field(  # regular expressions of parameter paths without weight decay
        default_factory=lambda: list(NO_DECAY)
    )
    beta1: float = 0.9  # decay of the running mean of gradients
    beta2: float = 0.999  # decay of the running mean of squared gradients
    epsilon: float = 1e-8  # added to the root of the mean of squared gradients
    moments: Moments = "float32"  # dtype of the running means; bfloat16 halves their memory
    clip_norm: float | None = 1.0  # maximum global norm of the gradients; null: no clipping
    # learning-rate schedule after warm-up. wsd (warmup-stable-decay): constant, then linear decay in the last steps; a
    # run can be prolonged before the decay begins, since its steps until then do not depend on the number of steps
    schedule: Schedule = "cosine"
    decay: float = 0.2  # wsd: share of all steps in which the learning rate falls
    warmup: float = 0.1  # warm-up steps as a fraction of all steps
    final_ratio: float = 0.0  # final learning rate / peak learning rate
    # weights of linear layers that are zero at the start stay zero; true in a run of `compress --sparsity`, and in one
    # with init_from such a run
    keep_zeros: bool = False
    max_nonfinite: int = 5  # stop after N updates in a row with NaN or infinity


@dataclass
class CheckpointConfig:
    """When to save checkpoints, and which to keep."""

    every: int = 100  # steps between checkpoints; the last step is always saved
    keep_last: int = 2  # number of newest checkpoints to keep
    keep_best: int = 1  # number of checkpoints with the best evaluation metric to keep


@dataclass
class TrackingConfig:
    """What to record during training."""

    log_every: int = 10  # steps between log lines
    tensorboard: bool = True  # also write TensorBoard files to RUN/tensorboard
    wandb_project: str | None = None  # also log to this Weights & Biases project; needs the extra wandb


@dataclass
class ProfileConfig:
    """Which steps to trace."""

    steps: str | None = None  # steps to trace into RUN/profile, such as 10..13; null: none


@dataclass
class DistilConfig:
    """Learning from tuned runs: their outputs in place of, or beside, the targets (Hinton et al., 2015)."""

    # run directories of the same task, labels and tokenizer; the student learns the mean of their probabilities (of
    # their numbers), so several teachers make one network of an ensemble. []: no distillation
    teachers: list[str] = field(default_factory=list)
    temperature: float = 2.0  # divides the logits of student and teachers; above 1: more of what unlikely classes say
    weight: float = 0.5  # share of this loss; 1 - weight is that of the task's own loss. 1: targets have no effect
    hidden: float = 0.0  # factor of the mean squared distance of last hidden states; needs networks of equal width


@dataclass
class RobustTrainingConfig:
    """Training that noise in texts moves less. Try data.train[].augment first, which goes with all of this."""

    # r_drop: two dropout draws of a batch, which also learn to agree; noise: random noise on word embeddings; freelb:
    # noise on word embeddings that raises the loss
    method: RobustMethod = "none"
    weight: float = 1.0  # r_drop: factor of the symmetric KL divergence of both draws (numbers: squared difference)
    # size of the random noise of a text, uniform in ± noise / sqrt(tokens · features); null: noise 5, freelb 0.1 (where
    # it starts), r_drop 0
    noise: float | None = None
    distribution: Distribution = "uniform"  # gaussian: of the same standard deviation
    ascent_steps: int = 2  # freelb: gradients of the loss that are averaged, each at noise that the one before chose
    step_size: float = 0.1  # freelb: norm of the change of a text's noise after each of them
    max_norm: float | None = None  # freelb: largest norm of a text's noise; null: none


@dataclass
class SemiSupervisedConfig:
    """Learning from the examples of data.unlabeled: what the network says of one view, it learns for another."""

    # self_training: its label, as it is; fixmatch: its label, where it is confident; uda: its sharpened probabilities,
    # where it is confident; pi_model: its probabilities, by squared error, both views with dropout
    method: UnlabeledMethod = "none"
    ratio: float = 4.0  # unlabeled examples for each labeled one of a batch
    weight: float = 1.0  # factor of this loss, a mean over the unlabeled examples of a batch
    ramp_up: int = 0  # steps over which that factor rises, as exp(-5 (1 - step / ramp_up)²)
    threshold: float | None = None  # least probability of a class; null: fixmatch 0.95, uda 0.8, self_training 0
    per_class_thresholds: bool = False  # thresholds by class that follow the network's confidence (FreeMatch)
    align: bool = False  # correct probabilities so that classes are as frequent as in the labeled examples
    momentum: float = 0.99  # of the running averages of per_class_thresholds and align
    temperature: float = 0.4  # uda: sharpens probabilities, p^(1/temperature)
    teacher_decay: float = 0.0  # the weak view is read with an exponential average of the parameters; 0: with them
