"""What is kept of a teacher's distribution: top-k, tail, sampled token, rank, entropy. Pure.

Everything comes from full logits in float32; the caller bounds how many positions exist at once.
Shapes: T tokens, K top-k, V vocabulary.
"""

import torch
from torch import Tensor

LOWEST = -1e30
"""Stands for a logit of -inf in products."""


def score_signals(
    logits_TV: Tensor, token_ids_T: Tensor, *, k: int, vocab_size: int
) -> dict[str, Tensor]:
    """Return the stored signals of T positions, named as the fields of `engine.Scores`.

    Args:
        logits_TV: raw teacher logits; cast to float32 inside.
        token_ids_T: int64 ids that stand at these positions.
        k: ids to keep, at most `vocab_size`.
        vocab_size: ids that may enter the top-k; the mass of ids above goes to the tail. Rank and
            entropy are over all ids.
    """
    logits_TV = logits_TV.float()
    log_z_T1 = logits_TV.logsumexp(-1, keepdim=True)
    top_TK, ids_TK = logits_TV[:, :vocab_size].topk(k, dim=-1)
    token_T1 = logits_TV.gather(-1, token_ids_T[:, None])
    rank_T = (logits_TV > token_T1).sum(-1, dtype=torch.int32) + 1
    probs_TV = (logits_TV - log_z_T1).exp_()
    finite_TV = logits_TV.clamp(min=LOWEST)  # so that 0 · -inf is 0
    entropy_T = log_z_T1[:, 0] - torch.linalg.vecdot(probs_TV, finite_TV)
    tail_T = probs_TV.scatter_(-1, ids_TK, 0.0).sum(-1).log()  # a sum without cancellation
    return {
        "topk_ids": ids_TK.to(torch.int32),
        "topk_logprobs": top_TK - log_z_T1,
        "tail": tail_T,
        "token_logprob": (token_T1 - log_z_T1)[:, 0],
        "token_rank": rank_T,
        "entropy": entropy_T.clamp(min=0.0),
    }
