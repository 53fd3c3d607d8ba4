"Every VLM type that transformers names, built tiny, with an LLM of its kind and their base beside it"
import re
from pathlib import Path
import torch, transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VLMS
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from vlm_merging.merging.merge import merge
from vlm_merging.merging.plan import plan

LAYERS = 4      # Of a language model; kinds of layers take turns
SIZES = {
    2: 'num_hidden_layers num_layers depth n_layer n_layers encoder_layers decoder_layers '
        'num_key_value_heads num_experts_per_tok spatial_merge_size resampler_depth layers '
        'num_decoder_layers moe_k moe_topk swa_num_key_value_heads num_global_layers '
        'conf_num_hidden_layers aligner_num_add_layers hc_mult hc_count index_topk index_topk_blocks '
        'n_groups linear_num_key_heads num_query_tokens moe_num_shared_experts n_shared_experts '
        'resampler_n_latents resampler_num_latents latent_query_num',
    4: 'num_attention_heads num_heads n_head n_heads attention_heads num_experts num_local_experts '
        'n_routed_experts moe_num_experts encoder_attention_heads decoder_attention_heads '
        'swa_num_attention_heads num_sliding_attention_heads resampler_n_heads resampler_heads '
        'linear_num_value_heads linear_num_heads mamba_num_heads index_n_heads pos_emb_height '
        'pos_emb_width pos_emb_time conf_num_attention_heads posemb_grid_size codebook_size '
        'num_embeddings max_temporal_embeddings laurel_rank d_rel downsample_hidden_size '
        'post_conv_in_channels post_conv_mid_channels post_conv_out_channels qk_rope_head_dim '
        'rotary_dim img_max_token_num',
    8: 'head_dim swa_head_dim resampler_head_dim resampler_dim_head linear_key_head_dim '
        'linear_value_head_dim linear_head_dim mamba_head_dim index_head_dim qk_nope_head_dim '
        'v_head_dim d_kv ssm_state_size patch_size hc_lowrank chunk_size window_size',
    16: 'num_position_embeddings num_mel_bins n_mel_bins base_channels latent_channels',
    32: 'hidden_size n_embd d_model embed_dim width dim out_hidden_size embedding_size output_dim '
        'text_hidden_size encoder_hidden_size image_token_embed_dim vision_hidden_size '
        'word_embed_proj_dim decoder_hidden_size adapter_out_dim adapter_in_dim adapter_input_size '
        'projector_hidden_size image_size ple_embed_dim resolution projection_hidden_size '
        'patch_embed_hidden_size rel_extent hidden_size_per_layer_input num_pos_feats kv_lora_rank '
        'q_lora_rank moe_hidden_size vision_output_dim audio_hidden_size output_channels '
        'projection_hidden_dim',
    48: 'intermediate_size ffn_dim moe_intermediate_size shared_expert_intermediate_size mlp_dim d_ff '
        'encoder_ffn_dim decoder_ffn_dim dense_intermediate_size intermediate_size_mlp '
        'projection_intermediate_size alignment_intermediate_size share_expert_dim '
        'shared_experts_intermediate_size shared_intermediate_size '
        'moe_shared_expert_intermediate_size',
    128: 'vocab_size max_position_embeddings max_source_positions vocab_size_per_layer_input '
        'type_vocab_size max_2d_position_embeddings position_embedding_size num_patches '
        'mel_vocab_size max_num_patches'}
SIZES = {word: int(n) for n, words in SIZES.items() for word in words.split()}


DEPTHS = 'num_hidden_layers', 'n_layers', 'num_layers', 'depth', 'layers', 'encoder_layers'
TOWER = re.compile('vision|audio|vit|vq|encoder|qformer|perceiver|dit|adapter')


def picked(config, layers):
    "How deep a default model is, and layers that stand for all: one of each kind, then more, in order"
    n = next((config[k] for k in DEPTHS if isinstance(config.get(k), int)), 0)
    lists = [v for v in config.values() if isinstance(v, list) and len(v)==n and v!=list(range(n))]
    own, kinds = config.get('per_layer_config') or {}, {}
    for i in range(n): kinds.setdefault(str([[v[i] for v in lists], own.get(f'{i:02}')]), i)
    chosen = list(kinds.values())[:layers]
    return n, sorted([*chosen, *[i for i in range(n) if i not in chosen][:layers-len(chosen)]])


def is_rising(v, n):
    "Does a list count layers, up to the last one?"
    return isinstance(v[0], int) and v==sorted(v) and v[-1]>=n-2 and len(set(v))>1


def shrunk(config, path=''):
    "A configuration as a table, made tiny"
    n, chosen = picked(config, LAYERS if 'vocab_size' in config and not TOWER.search(path) else 2)
    small = dict(config)
    for k, v in config.items():
        if isinstance(v, dict) and 'model_type' in v: small[k] = shrunk(v, f'{path}.{k}')
        elif k=='per_layer_config' and v:
            small[k] = {f'{chosen.index(int(i)):02}': shrunk(o) for i, o in v.items() if int(i) in chosen}
        elif isinstance(v, bool) or v is None: continue
        elif k in DEPTHS: small[k] = len(chosen)
        elif isinstance(v, int) and k in SIZES: small[k] = SIZES[k] if v else v
        elif isinstance(v, list) and v and len(v)==n:
            small[k] = list(range(len(chosen))) if is_rising(v, n) else [SIZES.get(k, v[i]) for i in chosen]
        elif isinstance(v, list) and k in SIZES: small[k] = [SIZES[k] for _ in v]
        elif isinstance(v, int) and k.endswith(('_id', 'token_index')) and v>=VOCAB: small[k] = 5
    return small | OWN.get(config.get('model_type', ''), {})


VOCAB = 128
ROPE = dict(rope_type='default', rope_theta=1e4)
OWN = {     # What a default leaves open, or what only fits itself
    'chameleon': dict(vocabulary_map={'<image>': 4}),
    'chameleon_vqgan': dict(base_channels=32, latent_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
                            attn_resolutions=[]),
    'cohere_compass_text': dict(rope_parameters={'full_attention': ROPE, 'sliding_attention': ROPE}),
    'cosmos3_edge_text': dict(rope_parameters=ROPE | dict(mrope_section=[2, 1, 1])),
    'deepseek_ocr2_text': dict(mlp_layer_types=['dense', 'sparse', 'sparse', 'sparse'],
                               num_experts_per_tok=2),
    'unlimited_ocr_text': dict(mlp_layer_types=['dense', 'sparse', 'sparse', 'sparse'],
                               num_experts_per_tok=2),
    'diffusion_gemma_text': dict(num_experts=4, top_k_experts=2, moe_intermediate_size=48),
    'dots3_note_text': dict(num_key_value_heads=4, per_layer_config={}, head_dim=12),
    'gemma3n_text': dict(layer_types=['sliding_attention', 'full_attention']*2, num_kv_shared_layers=2),
    'timm_wrapper': dict(model_args={'embed_dim': 32}),
    'glm5_next_text': dict(num_key_value_heads=4, index_topk=16),
    'emu3': dict(vocabulary_map={'<|extra_200|>': 5, '<image>': 4}),
    'muse_spark_audio': dict(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_hidden_layers=4,
                             patch_sizes=[2, 2, 2, 2]),
    'radio': dict(max_img_size=32),
    'hunyuan_vl_vision': dict(max_image_size=32, img_max_token_num=64),
    'deepseek_ocr2_sam_vision_model': dict(downsample_channels=[16, 32]),
    'unlimited_ocr_sam_vision_model': dict(downsample_channels=[16, 32]),
    'florence_vision': dict(patch_size=[2, 2, 2, 2], embed_dim=[8, 8, 8, 8], num_heads=[2, 2, 2, 2],
                            num_groups=[2, 2, 2, 2], projection_dim=32),
    'janus_vision_model': dict(projection_dim=32),
    'emu3_vqgan': dict(base_channels=32, latent_channels=4, channel_multiplier=[1, 1], num_res_blocks=1),
    'janus_vqgan': dict(projection_dim=32, image_token_embed_dim=32, base_channels=32, latent_channels=32,
                        channel_multiplier=[1, 1], num_res_blocks=1),
    'ernie4_5_vl_moe_text': dict(rope_parameters=ROPE | dict(mrope_section=[1, 1, 2])),
    'hunyuan_vl_text': dict(head_dim=8),
    'granite4_vision': dict(downsample_rate='2/4', deepstack_layer_map=[[0, 0], [1, 1]],
                            spatial_target_layers=[0, 1]),
    'llama4_vision_model': dict(vision_output_dim=32, projector_input_dim=32, projector_output_dim=32),
    'mllama_text_model': dict(cross_attention_layers=[1]),
    'mllama_vision_model': dict(vision_output_dim=64, intermediate_layers_indices=[0]),
    'molmo2_adapter': dict(vision_feature_layer=[1, 0]),
    'molmo2': dict(vision_feature_layer=[1, 0]),
    'nemotron_h_omni_vision': dict(max_img_size=32),
    'qwen4_exp_text': dict(indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
                           indexer_compress_ratio=2),
    'sam_vision': dict(output_channels=32),
}

def vlm_config(kind):
    cls = CONFIG_MAPPING[kind]
    small = shrunk(cls().to_dict())
    if kind=='pi0': small['dit_config']['hidden_size'] = 16
    if kind=='granite4_vision': small['vision_config']['hidden_size'] = 64
    return cls.from_dict(small)


def class_of(kind): return getattr(transformers, VLMS[kind])


def stand_in():
    "Towers that come from timm are replaced by one matrix, where timm is not installed"
    from transformers import AutoModel, PreTrainedModel, TimmWrapperConfig
    from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig
    if transformers.utils.is_timm_available(): return
    for of in (TimmWrapperConfig, Gemma3nVisionConfig):
        class Tower(PreTrainedModel):
            config_class = of
            def __init__(self, config):
                super().__init__(config)
                self.timm_model = torch.nn.Linear(8, 8)
                self.post_init()
        AutoModel.register(of, Tower, exist_ok=True)


stand_in()


# --- The LLM of its kind

# Text parts with a name of their own, whose layers are those of an LLM
SIBLING = dict(
    cosmos3_omni='qwen3', emu3='llama', ernie4_5_vl_moe='ernie4_5_moe', evolla='llama', glm46v='glm4',
    glm4v='glm4', glm4v_moe='glm4_moe', glm_ocr='glm4', glmga='glm4', granite4_vision='granite',
    granite_docling='granite', hunyuan_vl='hunyuan_v1_dense', idefics='llama', mllama='llama',
    molmo2='qwen3', paddleocr_vl='ernie4_5', pi0='gemma', qwen2_5_omni_thinker='qwen2', qwen2_5_vl='qwen2',
    qwen2_vl='qwen2', qwen3_omni_moe_thinker='qwen3_moe', qwen3_vl='qwen3', qwen3_vl_moe='qwen3_moe')
# What has no LLM of its kind, and why
ALONE = {kind: why for why, kinds in {
    'a text decoder of BERT, trained for this':
        'blip git',
    'norms of its own, trained from the start':
        'chameleon',
    'no LLM of this kind in transformers':
        'cosmos3_edge diffusion_gemma deepseek_ocr2 unlimited_ocr glm5_next mistral_large4 muse_glimmer '
        'muse_spark step3p7',
    'a language model itself':
        'mistral4',
    'encoder and decoder':
        'florence2 pix2struct pp_formulanet t5gemma2 udop vision-encoder-decoder',
    'trained from the start':
        'kosmos-2 kosmos-2.5'}.items() for kind in kinds.split()}
DROPPED = 'model_type', 'architectures', 'transformers_version', 'id2label', 'label2id', 'quantization_config'
MORE = {    # What an LLM's configuration has otherwise
    'ernie4_5_vl_moe': dict(moe_intermediate_size=48, moe_layer_start_index=1), 'glm46v': dict(head_dim=8),
    'glm4v': dict(head_dim=8), 'glmga': dict(head_dim=8), 'glm_ocr': dict(head_dim=8, attention_bias=False),
    'mllama': dict(num_hidden_layers=3)}


def llm_config(kind, config):
    "The configuration of the LLM that a VLM of this kind is built on"
    text = config.vlm_config.text_config if kind=='pi0' else config.get_text_config(decoder=True)
    if kind not in SIBLING: return text
    own = {k: v for k, v in text.to_dict().items() if k not in DROPPED}
    return CONFIG_MAPPING[SIBLING[kind]].from_dict(own | MORE.get(kind, {}))


@torch.no_grad()
def random_model(cls, config, seed):
    "A model all of whose numbers are random: also norms, which begin as ones"
    torch.manual_seed(seed)
    model = cls(config) if cls is not AutoModelForCausalLM else cls.from_config(config)
    for p in model.parameters(): p.copy_(.1*torch.randn(p.shape))
    for b in model.buffers():
        if b.is_floating_point() and b.numel()>1 and not b.isfinite().all(): b.zero_()
    return model.float().eval()


def decoder_of(llm):
    "The part of an LLM that has no head"
    return llm.base_model if llm.base_model is not llm else llm.model


@torch.no_grad()
def poured(vlm, llm, kind):
    "Put the numbers of an LLM into a VLM, module by module; embeddings stay"
    source = decoder_of(llm)
    tables = {n for n, m in source.named_modules() if isinstance(m, torch.nn.Embedding)}
    theirs = {n: p for n, p in [*source.named_parameters(), *source.named_buffers()]
              if n.rpartition('.')[0] not in tables and n in {**source.state_dict()}}
    rank, found = RANKS.get(kind, lambda n: n), None
    for name, module in vlm.named_modules():
        mine = {n: p for n, p in [*module.named_parameters(), *module.named_buffers()]}
        if all(rank(n) in mine and mine[rank(n)].shape==p.shape for n, p in theirs.items()):
            inner = name
            found = {rank(n): p for n, p in theirs.items()}, mine
    if not found:
        near = max(vlm.named_modules(), key=lambda nm: sum(rank(n) in dict(nm[1].named_parameters())
                                                           for n in theirs))
        mine = {n: p for n, p in [*near[1].named_parameters(), *near[1].named_buffers()]}
        raise LookupError(f'{kind}: {near[0]} lacks '+', '.join(n for n in theirs if rank(n) not in mine
                                                                or mine[rank(n)].shape!=theirs[n].shape))
    for n, p in found[0].items(): found[1][n].copy_(p)
    return inner
RANKS = {'ernie4_5_vl_moe': lambda n: re.sub(r'mlp\.(gate|experts)\.', r'mlp.text_moe.\1.', n),
    'mllama': lambda n: re.sub(r'layers\.(\d+)', lambda m: f'layers.{(0, 2, 3)[int(m[1])]}', n)}


def make(kind, folder):
    "Write `vlm`, `llm`, `base`; and `llm_in`, `base_in`: their numbers in the VLM's place"
    config = vlm_config(kind)
    vlm = random_model(class_of(kind), config, 1)
    vlm.save_pretrained(folder/'vlm')
    for seed, who in ((2, 'llm'), (3, 'base')):
        llm = random_model(AutoModelForCausalLM, llm_config(kind, config), seed)
        llm.save_pretrained(folder/who)
        where = poured(vlm, llm, kind)
        vlm.save_pretrained(folder/f'{who}_in')
    return where


# --- The merge, worked out here and by the package

def stored(folder):
    "All tensors of a folder"
    return {n: x for f in sorted(Path(folder).glob('*.safetensors')) for n, x in load_file(f).items()}


def line(v, l, b): return l.lerp(v, .7)


def ties(v, l, b):
    "Keep the largest 40 %, the first among equals; sign of the plain sum; divide by how many agree"
    deltas = v-b, l-b
    for d in deltas:
        keep = d.abs().flatten().argsort(descending=True, stable=True)[:int(.4*d.numel())]
        d *= torch.zeros(d.numel()).index_fill(0, keep, 1.).view(d.shape)
    sign = torch.where(sum(deltas)>=0, 1, -1)
    agree = [(d.sign()==sign).float() for d in deltas]
    return b + (1.5*deltas[0]*agree[0] + .5*deltas[1]*agree[1])/sum(agree).clamp(min=1)


RECIPES = dict(linear=(line, dict(weight=.7)), ties=(ties, dict(weight=1.5, llm_weight=.5, density=.4)))


def expected(formula, v, l, b):
    "A formula, on the rows that the LLM has"
    there = (v!=l).reshape(len(v), -1).any(1) if v.dim()>1 else torch.ones(len(v), dtype=bool)
    out = v.clone()
    out[there] = formula(v[there], l[there], b[there])
    return out


def judged(kind, folder):
    "What became of a type: works, partly, refused, wrong; why; its stem; tensors merged, and kept"
    make(kind, folder)
    vlm, llm, base = map(stored, (folder/'vlm', folder/'llm_in', folder/'base_in'))
    aim, stem = {n for n in vlm if not torch.equal(vlm[n], llm[n])}, ''
    for method, (formula, knobs) in RECIPES.items():
        with_base = dict(base=folder/'base') if method=='ties' else {}
        try: p = plan(folder/'vlm', folder/'llm', method=method, **with_base, **knobs)
        except ValueError as e: return 'refused', str(e), stem, 0, len(vlm)
        if p.stops: return 'refused', ' '.join(map(str, p.stops)), stem, 0, len(vlm)
        out = stored(merge(p, out=folder/method, progress=False))
        moved = {n for n in vlm if not torch.equal(out[n], vlm[n])}
        wrong = [n for n in moved
                 if n not in aim or not torch.equal(out[n], expected(formula, vlm[n], llm[n], base[n]))]
        counts = len(moved), len(vlm)-len(moved)
        if wrong: return 'wrong', f'{method}: other numbers in {wrong[:3]}', stem, *counts
        inside = next(w.pair.vlm for w in p.merged if w.pair.layer is not None)
        stem = re.match(r'(?:.*?\.)?(?:layers|blocks|h)\.', inside)[0]
        left = sorted(aim-moved)
        if left: return 'partly', f'{left[0]}: {p.kept.get(left[0])}', stem, *counts
    before, after = (opens(kind, folder/name) for name in ('vlm', 'ties'))
    if before!=after: return 'wrong', f'does not open as before: {after}', stem, *counts
    return 'works', '', stem, *counts


def opens(kind, folder):
    "Names that are missing or left over when transformers opens a folder"
    _, info = class_of(kind).from_pretrained(folder, output_loading_info=True)
    return {k: info[k] for k in ('missing_keys', 'unexpected_keys', 'mismatched_keys')}


def text_of(kind):
    "The LLM of a kind, by its name in transformers"
    return SIBLING.get(kind) or vlm_config(kind).get_text_config(decoder=True).model_type
