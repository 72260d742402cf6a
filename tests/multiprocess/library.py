"""Further models of Hugging Face's library, for ``benchmarks/bench_models.py``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.multiprocess.case import CLASSES, LAYERS, TOKENS, VOCABULARY, Case
from tests.multiprocess.huggingface import (
    BART_SIZES,
    BERT_DROPOUT,
    CLIP_TOWER,
    EXPERTS,
    HEADS,
    INNER,
    T5_SIZES,
    WIDTH,
    case,
    labelled,
    make,
    masked,
    other,
    recorded,
    seen,
)

SOUND = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "hidden_dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0,
    "layerdrop": 0.0, "apply_spec_augment": False, "num_labels": 2, "classifier_proj_size": 8,
    "final_dropout": 0.0, "vocab_size": 32,
}  # fmt: skip
IMAGE = {"image_size": 32, "num_labels": CLASSES}
TOWER = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
         "num_attention_heads": HEADS, "patch_size": 8, **IMAGE, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}  # fmt: skip
GPT = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
       "n_positions": TOKENS, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}  # fmt: skip
MPT = {"vocab_size": VOCABULARY, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS,
       "max_seq_len": TOKENS, "expansion_ratio": 2}  # fmt: skip
GROUPED = {"num_key_value_heads": 2}


def said(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Sound with the tokens that are said in it, of which some are padding."""
    sound = torch.randn(samples, 640, generator=generator)
    tokens = torch.randint(1, 32, (samples, 6), generator=generator)
    tokens[::2, 4:] = -100
    return {"input_values": sound, "labels": tokens}, None


def drawn(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Images with a class for every pixel of a quarter of their size."""
    pixels = torch.randn(samples, 3, 32, 32, generator=generator)
    labels = torch.randint(CLASSES, (samples, 32, 32), generator=generator)
    return {"pixel_values": pixels, "labels": labels}, None


def bytes_with_class(generator: torch.Generator, samples: int) -> tuple[Any, Tensor | None]:
    """Bytes as Perceiver reads them, that are labels as well."""
    tokens = torch.randint(3, 120, (samples, TOKENS), generator=generator)
    return {"inputs": tokens, "labels": tokens.clone()}, None


def perceiver() -> Case:
    sizes = {"num_latents": 8, "d_latents": WIDTH, "d_model": WIDTH, "num_blocks": 1,
             "num_self_attends_per_block": 2, "num_self_attention_heads": HEADS,
             "num_cross_attention_heads": HEADS, "attention_probs_dropout_prob": 0.0,
             "vocab_size": VOCABULARY, "max_position_embeddings": TOKENS,
             "qk_channels": WIDTH, "v_channels": WIDTH}  # fmt: skip
    return Case(partial(make, "PerceiverForMaskedLM", **sizes), bytes_with_class)


# Modules or functions of these cannot be traced: they are run whole.
WHOLE = {
    "hf-longformer": case("LongformerForMaskedLM", attention_window=4, **BERT_DROPOUT),
    "hf-led": other("LEDForConditionalGeneration", masked, attention_window=4,
                    max_encoder_position_embeddings=2 * TOKENS,
                    max_decoder_position_embeddings=2 * TOKENS, **BART_SIZES),
    "hf-phimoe": case("PhimoeForCausalLM", num_local_experts=4, router_jitter_noise=0.0,
                      input_jitter_noise=0.0, **EXPERTS),
    "hf-recurrent-gemma": case("RecurrentGemmaForCausalLM", lru_width=WIDTH,
                               attention_window_size=8, num_key_value_heads=2, head_dim=8,
                               block_types=("recurrent", "attention")),
    "hf-funnel": other("FunnelForMaskedLM", vocab_size=VOCABULARY, block_sizes=[2, 2],
                       d_model=WIDTH, n_head=HEADS, d_head=8, d_inner=INNER, hidden_dropout=0.0,
                       attention_dropout=0.0, activation_dropout=0.0),
    "hf-nystromformer": case("NystromformerForMaskedLM", num_landmarks=4, conv_kernel_size=3,
                             segment_means_seq_len=TOKENS, **BERT_DROPOUT),
    "hf-wav2vec2-ctc": other("Wav2Vec2ForCTC", said, **SOUND),
    "hf-wav2vec2-ctc-mean": other("Wav2Vec2ForCTC", said, ctc_loss_reduction="mean", **SOUND),
    "hf-switch-router": replace(
        other("SwitchTransformersForConditionalGeneration", masked, num_layers=2,
              num_decoder_layers=2, num_experts=4, num_sparse_encoder_layers=1,
              num_sparse_decoder_layers=1, expert_capacity=4, router_jitter_noise=0.0,
              **T5_SIZES), mixes=True),
    "hf-bigbird-sparse": case("BigBirdForMaskedLM", partial(labelled, length=64), block_size=4,
                              num_random_blocks=1, attention_type="block_sparse",
                              **{"max_position_embeddings": 64}, **BERT_DROPOUT),
}  # fmt: skip

TRACED = {
    "hf-olmo": case("OlmoForCausalLM", **GROUPED),
    "hf-stablelm": case("StableLmForCausalLM", **GROUPED),
    "hf-mpt": other("MptForCausalLM", **MPT),
    "hf-codegen": other("CodeGenForCausalLM", n_ctx=TOKENS, rotary_dim=4, **GPT),
    "hf-xlnet": other("XLNetLMHeadModel", vocab_size=VOCABULARY, d_model=WIDTH, n_layer=LAYERS,
                      n_head=HEADS, d_inner=INNER, dropout=0.0),
    "hf-marian": other("MarianMTModel", **BART_SIZES),
    "hf-bigbird": case("BigBirdForMaskedLM", attention_type="original_full", **BERT_DROPOUT),
    "hf-fnet": case("FNetForMaskedLM", use_tpu_fourier_optimizations=False,
                    hidden_dropout_prob=0.0),
    "hf-beit": Case(partial(make, "BeitForImageClassification", drop_path_rate=0.0, **TOWER), seen),
    "hf-segformer": Case(partial(
        make, "SegformerForSemanticSegmentation", num_encoder_blocks=2, depths=[2, 2],
        sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0,
        drop_path_rate=0.0), drawn, mixes=True),
    "hf-segformer-classes": Case(partial(
        make, "SegformerForImageClassification", num_encoder_blocks=2, depths=[2, 2],
        sr_ratios=[2, 1], hidden_sizes=[16, 32], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0), seen),
    "hf-clip-tower": Case(partial(
        make, "CLIPForImageClassification", num_labels=CLASSES, vision_config=CLIP_TOWER | {
            "image_size": 32, "patch_size": 8}), seen),
    "hf-siglip": Case(partial(
        make, "SiglipForImageClassification", num_labels=CLASSES, vision_config=CLIP_TOWER | {
            "image_size": 32, "patch_size": 8}), seen),
    "hf-mobilevit": Case(partial(
        make, "MobileViTForImageClassification", image_size=32, hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[4, 8, 8, 16, 16, 16, 32], num_attention_heads=2, mlp_ratio=2.0,
        expand_ratio=2.0, num_labels=CLASSES, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0), seen, mixes=True),
    "hf-swinv2": Case(partial(
        make, "Swinv2ForImageClassification", image_size=32, patch_size=4, embed_dim=16,
        depths=[1, 2], num_heads=[2, 4], window_size=4, num_labels=CLASSES,
        drop_path_rate=0.0), seen),
    "hf-convnextv2": Case(partial(
        make, "ConvNextV2ForImageClassification", hidden_sizes=[8, 16], depths=[2, 2],
        num_stages=2, num_labels=CLASSES, drop_path_rate=0.0), seen),
    "hf-hubert": other("HubertForSequenceClassification", recorded, **SOUND),
    "hf-wavlm": other("WavLMForSequenceClassification", recorded, **SOUND),
    "hf-rwkv": other("RwkvForCausalLM", partial(labelled, length=8), vocab_size=VOCABULARY,
                     hidden_size=WIDTH, attention_hidden_size=WIDTH, intermediate_size=INNER,
                     num_hidden_layers=LAYERS, context_length=TOKENS),
    "hf-glm": case("GlmForCausalLM", head_dim=8, **GROUPED),
    "hf-glm4": case("Glm4ForCausalLM", head_dim=8, **GROUPED),
    "hf-granite": case("GraniteForCausalLM", **GROUPED),
    "hf-qwen2": case("Qwen2ForCausalLM", **GROUPED),
    "hf-qwen2-moe": case("Qwen2MoeForCausalLM", num_experts=4, moe_intermediate_size=INNER,
                         shared_expert_intermediate_size=INNER, **EXPERTS),
    "hf-smollm3": case("SmolLM3ForCausalLM", **GROUPED),
    "hf-nemotron": case("NemotronForCausalLM", **GROUPED),
    "hf-convbert": case("ConvBertForMaskedLM", embedding_size=WIDTH, head_ratio=2,
                        conv_kernel_size=3, **BERT_DROPOUT),
    "hf-dinov2": Case(partial(make, "Dinov2ForImageClassification", mlp_ratio=2, **TOWER), seen),
    "hf-perceiver": perceiver(),
    "hf-gpt-bigcode": other("GPTBigCodeForCausalLM", multi_query=True, **GPT),
    "hf-ernie": case("ErnieForMaskedLM", **BERT_DROPOUT),
    "hf-lfm2": case("Lfm2ForCausalLM", layer_types=["conv", "full_attention", "conv"], **GROUPED),
    "hf-minimax": case("MiniMaxForCausalLM", num_local_experts=4, head_dim=8, block_size=8,
                       layer_types=["full_attention", "linear_attention"], **EXPERTS),
    "hf-cohere2": case("Cohere2ForCausalLM", sliding_window=8, **GROUPED),
    "hf-olmo3": case("Olmo3ForCausalLM", sliding_window=8, **GROUPED),
    "hf-exaone4": case("Exaone4ForCausalLM", sliding_window=8, **GROUPED),
    "hf-ernie4": case("Ernie4_5ForCausalLM", head_dim=8, **GROUPED),
    "hf-seed-oss": case("SeedOssForCausalLM", head_dim=8, attention_dropout=0.0,
                        residual_dropout=0.0, **GROUPED),
    "hf-helium": case("HeliumForCausalLM", head_dim=8, **GROUPED),
    "hf-deepseek-v2": case("DeepseekV2ForCausalLM", n_routed_experts=4, num_key_value_heads=4,
                           num_experts_per_tok=2, n_group=2, topk_group=1, kv_lora_rank=16,
                           q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
                           moe_intermediate_size=INNER, first_k_dense_replace=1,
                           num_hidden_layers=2),
    "hf-granitemoe": case("GraniteMoeForCausalLM", num_local_experts=4, **EXPERTS),
    "hf-olmoe": case("OlmoeForCausalLM", num_experts=4, **EXPERTS),
    "hf-biogpt": case("BioGptForCausalLM", activation_dropout=0.0, **BERT_DROPOUT),
    "hf-xglm": other("XGLMForCausalLM", vocab_size=VOCABULARY, d_model=WIDTH, ffn_dim=INNER,
                     num_layers=LAYERS, attention_heads=HEADS, dropout=0.0, attention_dropout=0.0,
                     max_position_embeddings=TOKENS),
    "hf-mpnet": case("MPNetForMaskedLM", **BERT_DROPOUT),
    "hf-levit": Case(partial(
        make, "LevitForImageClassification", image_size=32, hidden_sizes=[16, 32],
        num_attention_heads=[2, 4], depths=[1, 1], key_dim=[8, 8], drop_path_rate=0,
        mlp_ratio=[2, 2], attention_ratio=[2, 2], down_ops=[["Subsample", 8, 2, 4, 2, 2], [""]],
        num_labels=CLASSES), seen, mixes=True),
    "hf-vit-mae": Case(partial(make, "IJepaForImageClassification", **TOWER), seen),
    "hf-byt5-style": other("UMT5ForConditionalGeneration", num_layers=2, num_decoder_layers=2,
                           **T5_SIZES),
    "hf-squeezebert": case("SqueezeBertForMaskedLM", embedding_size=WIDTH, q_groups=2, k_groups=2,
                           v_groups=2, post_attention_groups=1, intermediate_groups=2,
                           output_groups=2, **BERT_DROPOUT),
    "hf-jamba": case("JambaForCausalLM", attn_layer_period=2, attn_layer_offset=1, num_experts=2,
                     expert_layer_period=2, use_mamba_kernels=False, mamba_d_state=4,
                     mamba_dt_rank=4, **{**EXPERTS, "num_experts_per_tok": 1}),
}  # fmt: skip

CASES = WHOLE | TRACED
