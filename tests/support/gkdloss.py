"""TRL's generalised JSD, for a test: run by the environment that TRL is in, with nothing of opd.

Reads JSON on stdin: `student` and `teacher` logits [T, V] and `betas`; prints for each beta the
loss of each token and its gradient on the student's logits.
"""

import json
import os
import sys
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def main() -> None:
    """Print loss and gradient for each beta."""
    import torch
    from trl.experimental.gkd import GKDTrainer

    given = json.load(sys.stdin)
    teacher_TV = torch.tensor(given["teacher"], dtype=torch.float64)
    found: list[dict[str, Any]] = []
    for beta in given["betas"]:
        logits_TV = torch.tensor(given["student"], dtype=torch.float64, requires_grad=True)
        parts_TV = GKDTrainer.generalized_jsd_loss(
            logits_TV[None], teacher_TV[None], beta=beta, reduction="none"
        )[0]
        loss_T = parts_TV.sum(-1)
        (grad_TV,) = torch.autograd.grad(loss_T.sum(), logits_TV)
        found.append({"loss": loss_T.tolist(), "gradient": grad_TV.tolist()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
