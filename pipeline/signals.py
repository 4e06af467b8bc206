"""What is kept of a teacher's distribution: top-k, tail, sampled token, rank, entropy. Pure.

Everything comes from full logits in float32; the caller bounds how many positions exist at once.
Shapes: T tokens, K top-k, V vocabulary.
"""

import math

import torch
from torch import Tensor


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
    rank_T = (logits_TV > token_T1).sum(-1) + 1
    entropy_T = torch.special.entr(logits_TV.softmax(-1)).sum(-1)  # 0 where a logit is -inf
    rest_TV = logits_TV.scatter(-1, ids_TK, -math.inf)
    return {
        "topk_ids": ids_TK.to(torch.int32),
        "topk_logprobs": top_TK - log_z_T1,
        "tail": rest_TV.logsumexp(-1) - log_z_T1[:, 0],
        "token_logprob": (token_T1 - log_z_T1)[:, 0],
        "token_rank": rank_T.to(torch.int32),
        "entropy": entropy_T,
    }
