"""KL divergence between a teacher's and a student's attention relations (see README.md)."""

from __future__ import annotations

from .api import attention_kl, interpreted, relation_kl, relation_kl_set, split_relation_heads

__all__ = ["attention_kl", "interpreted", "relation_kl", "relation_kl_set", "split_relation_heads"]
