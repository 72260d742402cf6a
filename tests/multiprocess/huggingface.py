"""Hugging Face models made from their configuration classes: small, random, dropout off."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.multiprocess.case import CLASSES, LAYERS, TOKENS, VOCABULARY, Case

WIDTH, INNER, HEADS = 32, 64, 4
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "max_position_embeddings": 2 * TOKENS,
}  # fmt: skip
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BERT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make(kind: str, **config: Any) -> nn.Module:
    """``transformers.<kind>`` with its own configuration class."""
    import transformers

    model = getattr(transformers, kind)
    return model(model.config_class(**config))  # type: ignore[no-any-return]


def labelled(
    generator: torch.Generator, samples: int, *, length: int = TOKENS, **more: Any
) -> tuple[Any, Tensor | None]:
    """Tokens that are labels as well."""
    tokens = torch.randint(3, VOCABULARY, (samples, length), generator=generator)
    return {"input_ids": tokens, "labels": tokens.clone(), **more}, None


def classified(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Tokens with a class for each sample."""
    tokens = torch.randint(3, VOCABULARY, (samples, TOKENS), generator=generator)
    labels = torch.randint(2, (samples,), generator=generator)
    return {"input_ids": tokens, "labels": labels}, None


def seen(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Images with a class for each."""
    pixels = torch.randn(samples, 3, 32, 32, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return {"pixel_values": pixels, "labels": labels}, None


def heard(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Spectrograms with the tokens that were said."""
    sound = torch.randn(samples, 8, 2 * TOKENS, generator=generator)
    tokens = torch.randint(3, VOCABULARY, (samples, TOKENS), generator=generator)
    return {"input_features": sound, "labels": tokens}, None


def recorded(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Sound with a class for each recording."""
    labels = torch.randint(2, (samples,), generator=generator)
    sound = torch.randn(samples, 640, generator=generator)
    return {"input_values": sound, "labels": labels}, None


def pairs(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Texts and images that belong together; the end of a text is its largest token."""
    inputs, _ = labelled(generator, samples)
    tokens = inputs["input_ids"].clamp(max=VOCABULARY - 2)
    tokens[:, -1] = VOCABULARY - 1
    pixels = torch.randn(samples, 3, 32, 32, generator=generator)
    return {"input_ids": tokens, "pixel_values": pixels, "return_loss": True}, None


def masked(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Tokens of which the last of every second sample are padding, with the mask that says so."""
    inputs, _ = labelled(generator, samples)
    mask = torch.ones(samples, TOKENS, dtype=torch.long)
    mask[::2, -TOKENS // 4 :] = 0
    return {**inputs, "attention_mask": mask}, None


def case(kind: str, batch: Any = labelled, **config: Any) -> Case:
    """A model whose sizes go by the usual names; ``config`` overrides them."""
    return Case(partial(make, kind, **{**SIZES, **SPECIAL, **config}), batch)


def other(kind: str, batch: Any = labelled, **config: Any) -> Case:
    """A model whose sizes go by names of its own."""
    return Case(partial(make, kind, **{**SPECIAL, **config}), batch)


GPT2_DROPOUT = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
EXPERTS = {"num_key_value_heads": 2, "num_experts_per_tok": 2, "num_hidden_layers": 2}
T5_SIZES = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_heads": HEADS,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
BART_SIZES = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": HEADS, "decoder_attention_heads": HEADS, "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER, "max_position_embeddings": 2 * TOKENS, "dropout": 0.0,
    "decoder_start_token_id": 1, "forced_eos_token_id": 2,
}  # fmt: skip
CLIP_TOWER = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 2,
              "num_attention_heads": HEADS}  # fmt: skip

# The models of docs/results.md, and below them others that nobody named.
CASES = {
    "hf-qwen3": case("Qwen3ForCausalLM", num_key_value_heads=2, head_dim=8),
    "hf-gptj": other("GPTJForCausalLM", vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS,
                     n_head=HEADS, n_positions=TOKENS, rotary_dim=4, **GPT2_DROPOUT),
    "hf-mixtral": case("MixtralForCausalLM", num_local_experts=4, **EXPERTS),
    # the router's loss is a product of means over all tokens of a micro-batch
    "hf-mixtral-router": replace(
        case("MixtralForCausalLM", num_local_experts=4, **EXPERTS, output_router_logits=True),
        mixes=True,
    ),
    "hf-qwen3-moe": case("Qwen3MoeForCausalLM", num_experts=4, moe_intermediate_size=INNER,
                         head_dim=8, **EXPERTS),
    "hf-mamba": other("MambaForCausalLM", partial(labelled, length=8), vocab_size=VOCABULARY,
                      hidden_size=WIDTH, state_size=4, num_hidden_layers=LAYERS),
    "hf-t5-labels": other("T5ForConditionalGeneration", num_layers=2, num_decoder_layers=2,
                          **T5_SIZES),
    "hf-gpt2-masked": other("GPT2LMHeadModel", masked, vocab_size=VOCABULARY, n_embd=WIDTH,
                            n_layer=LAYERS, n_head=HEADS, n_positions=TOKENS, **GPT2_DROPOUT),
    "hf-llama-masked": case("LlamaForCausalLM", masked, num_key_value_heads=2),
    "hf-bert-classes": case("BertForSequenceClassification", classified, **BERT_DROPOUT),
    "hf-roberta": case("RobertaForMaskedLM", **BERT_DROPOUT),
    "hf-distilbert": other("DistilBertForMaskedLM", vocab_size=VOCABULARY, dim=WIDTH,
                           hidden_dim=INNER, n_layers=LAYERS, n_heads=HEADS, dropout=0.0,
                           attention_dropout=0.0, max_position_embeddings=TOKENS),
    "hf-albert": case("AlbertForMaskedLM", embedding_size=16, **BERT_DROPOUT),
    "hf-deberta": case("DebertaV2ForMaskedLM", relative_attention=True, position_buckets=8,
                       pos_att_type=["p2c", "c2p"], **BERT_DROPOUT),
    "hf-electra": case("ElectraForMaskedLM", embedding_size=16, **BERT_DROPOUT),
    "hf-modernbert": case("ModernBertForMaskedLM", **{"cls_token_id": 1, "sep_token_id": 2}),
    "hf-opt": other("OPTForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH, ffn_dim=INNER,
                    num_hidden_layers=LAYERS, num_attention_heads=HEADS, dropout=0.0,
                    max_position_embeddings=TOKENS, word_embed_proj_dim=WIDTH),
    "hf-bloom": other("BloomForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH,
                      n_layer=LAYERS, n_head=HEADS, hidden_dropout=0.0, attention_dropout=0.0),
    "hf-phi": case("PhiForCausalLM", resid_pdrop=0.0),
    "hf-phi3": case("Phi3ForCausalLM", num_key_value_heads=2, resid_pdrop=0.0),
    "hf-gemma": case("GemmaForCausalLM", num_key_value_heads=2, head_dim=8),
    "hf-gemma2": case("Gemma2ForCausalLM", num_key_value_heads=2, head_dim=8, sliding_window=8),
    "hf-gemma3": case("Gemma3ForCausalLM", num_key_value_heads=2, head_dim=8, sliding_window=8),
    "hf-mistral": case("MistralForCausalLM", num_key_value_heads=2, sliding_window=8),
    "hf-olmo2": case("Olmo2ForCausalLM", num_key_value_heads=2),
    "hf-falcon": case("FalconForCausalLM", new_decoder_architecture=False, alibi=False,
                      ffn_hidden_size=INNER, hidden_dropout=0.0, attention_dropout=0.0),
    "hf-gpt-neox": case("GPTNeoXForCausalLM", hidden_dropout=0.0, attention_dropout=0.0),
    "hf-gpt-neo": other("GPTNeoForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH,
                        num_layers=2, num_heads=HEADS, max_position_embeddings=TOKENS,
                        attention_types=[[["global", "local"], 1]], window_size=8,
                        resid_dropout=0.0, embed_dropout=0.0, attention_dropout=0.0),
    "hf-starcoder2": case("Starcoder2ForCausalLM", num_key_value_heads=2, residual_dropout=0.0,
                          embedding_dropout=0.0),
    "hf-cohere": case("CohereForCausalLM", num_key_value_heads=2),
    "hf-bart": other("BartForConditionalGeneration", **BART_SIZES),
    "hf-pegasus": other("PegasusForConditionalGeneration", **BART_SIZES),
    "hf-mt5": other("MT5ForConditionalGeneration", num_layers=2, num_decoder_layers=2,
                    feed_forward_proj="gated-gelu", **T5_SIZES),
    "hf-clip": Case(partial(
        make, "CLIPModel", projection_dim=16,
        text_config={**CLIP_TOWER, "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS,
                     "eos_token_id": 2},
        vision_config={**CLIP_TOWER, "image_size": 32, "patch_size": 8}), pairs, mixes=True),
    "hf-wav2vec2": other("Wav2Vec2ForSequenceClassification", recorded, hidden_size=WIDTH,
                         num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                         intermediate_size=INNER, conv_dim=(8, 8), conv_kernel=(10, 3),
                         conv_stride=(5, 2), num_conv_pos_embeddings=4,
                         num_conv_pos_embedding_groups=2, hidden_dropout=0.0,
                         attention_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0,
                         layerdrop=0.0, apply_spec_augment=False, num_labels=2,
                         classifier_proj_size=8, final_dropout=0.0, vocab_size=32),
    "hf-swin": Case(partial(make, "SwinForImageClassification", image_size=32, patch_size=4,
                            embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4,
                            num_labels=CLASSES, drop_path_rate=0.0), seen),
    "hf-deit": Case(partial(make, "DeiTForImageClassification", image_size=32, patch_size=8,
                            hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS,
                            num_attention_heads=HEADS, num_labels=CLASSES), seen),
    "hf-convnext": Case(partial(make, "ConvNextForImageClassification", hidden_sizes=[8, 16],
                                depths=[2, 2], num_stages=2, num_labels=CLASSES,
                                drop_path_rate=0.0), seen),
    "hf-mamba2": other("Mamba2ForCausalLM", vocab_size=VOCABULARY, hidden_size=WIDTH,
                       num_heads=8, head_dim=8, state_size=8, n_groups=2,
                       num_hidden_layers=LAYERS, chunk_size=8),
    "hf-gpt-oss": case("GptOssForCausalLM", num_local_experts=4, head_dim=8, sliding_window=8,
                       **EXPERTS),
    "hf-deepseek-v3": case("DeepseekV3ForCausalLM", num_key_value_heads=4, n_routed_experts=4,
                           num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=16,
                           q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
                           moe_intermediate_size=INNER, first_k_dense_replace=1,
                           num_hidden_layers=2),
    "hf-switch": other("SwitchTransformersForConditionalGeneration", masked, num_layers=2,
                       router_jitter_noise=0.0,
                       num_decoder_layers=2, num_experts=4, num_sparse_encoder_layers=1,
                       num_sparse_decoder_layers=1, expert_capacity=16, **T5_SIZES),
}  # fmt: skip
