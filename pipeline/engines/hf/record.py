"""What a batch has sampled so far, on the device that samples. Shapes: B rows, V vocabulary."""

import torch
from torch import Tensor

from pipeline.engines.engine import Sample, Sampling
from pipeline.engines.hf.sampling import own_sample


class Record:
    """Tokens of a batch, and the student's own ids beside each."""

    def __init__(self, shape: tuple[int, ...], sampling: Sampling, device: torch.device) -> None:
        """Make room for [rows, steps] tokens, and for what is recorded of each."""
        self._ids = torch.zeros(shape, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(shape, dtype=torch.float32, device=device)
        self._lengths = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self._stopped = torch.zeros(shape[0], dtype=torch.bool, device=device)
        self._own = {
            name: (self._ids.new_zeros(*shape, n), self._logprobs.new_zeros(*shape, n))
            for name, n in (("candidate", sampling.candidates), ("sample", sampling.sample))
            if n
        }

    def put(
        self, step: int, rows: Tensor, ids_B: Tensor, logprobs_BV: Tensor, uniforms_B: Tensor
    ) -> None:
        """Write down one token of some rows.

        Args:
            step: its number.
            rows: which rows.
            ids_B: what was drawn.
            logprobs_BV: of the distribution that it was drawn from.
            uniforms_B: random numbers of the sample, which needs one for each row.
        """
        self._ids[rows, step] = ids_B
        self._logprobs[rows, step] = logprobs_BV.gather(-1, ids_B[:, None])[:, 0]
        self._lengths[rows] += 1
        for name, (ids, logprobs) in self._own.items():
            if name == "candidate":
                logprobs[rows, step], ids[rows, step] = logprobs_BV.topk(ids.shape[-1], dim=-1)
            else:
                found = own_sample(logprobs_BV, uniforms_B, ids.shape[-1])
                ids[rows, step], logprobs[rows, step] = found

    def stop(self, rows: Tensor) -> None:
        """Write down that some rows end by themselves."""
        self._stopped[rows] = True

    def so_far(self, step: int) -> Tensor:
        """Return the ids [rows, tokens] up to a step; zeros where a row ended before it."""
        return self._ids[:, : step + 1]

    def samples(self) -> list[Sample]:
        """Return the rows, each cut at its length."""
        ids, logprobs = self._ids.to(torch.int32).cpu().numpy(), self._logprobs.cpu().numpy()
        reasons = ["stop" if stop else "length" for stop in self._stopped.tolist()]
        own = {
            f"{name}_{part}": values.cpu().numpy()
            for name, (own_ids, own_logprobs) in self._own.items()
            for part, values in (("ids", own_ids.to(torch.int32)), ("logprobs", own_logprobs))
        }
        return [
            Sample(
                ids[row, :n].copy(),
                logprobs[row, :n].copy(),
                reasons[row],
                **{name: values[row, :n].copy() for name, values in own.items()},
            )
            for row, n in enumerate(self._lengths.tolist())
        ]
