"""An exponential moving average of the encoder, to be evaluated in its place.

Evaluators score the average, and tasks that read a checkpoint with `init_from` use it
(`models.weights.AVERAGED`). It has no effect on training.
"""

from torch import Tensor

from jigclu.models.encoder import Encoder
from jigclu.models.momentum import follow, momentum_copy
from jigclu.models.weights import AVERAGED


class AveragedEncoder:
    """The average of an encoder's parameters and batch-normalization statistics, as an `encoder`.

    Ranks need not exchange it, because it is computed from values that all of them have. After a
    step that was skipped, it moves towards the values that the step has left as they were.

    `tensors` are to be kept in checkpoints; a resumed run copies their values into them.

    torch.optim.swa_utils.AveragedModel is not used because it waits for the device in every step.
    """

    def __init__(self, trained: Encoder, momentum: float) -> None:
        """Copies the encoder.

        Args:
          trained: on its device, in its memory format.
          momentum: in [0, 1); 0 for no copy: the average is then the encoder itself.
        """
        self.encoder = momentum_copy(trained) if momentum > 0 else trained
        self._trained = trained
        self._momentum = momentum

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and statistics of the copy, by names of their own; empty without one."""
        if self.encoder is self._trained:
            return {}
        return {f"{AVERAGED}.{name}": value for name, value in self.encoder.state_dict().items()}

    def restart(self) -> None:
        """Sets the average to the encoder, whose weights have been replaced."""
        self._follow(0.0)

    def update(self, step: int) -> None:
        """Moves the average towards the encoder; nothing waits for the device.

        The momentum is at most (1 + step) / (10 + step), as in TensorFlow's
        ExponentialMovingAverage with num_updates. With 0.999 from the beginning, the random initial
        weights would have a share of 0.999^1000 = 37% after 1000 steps.

        Args:
          step: of pre-training, counted from 0.
        """
        self._follow(min(self._momentum, (1 + step) / (10 + step)))

    def _follow(self, momentum: float) -> None:
        if self.encoder is not self._trained:
            follow(self.encoder, self._trained, momentum, with_buffers=True)
