"""Merge a vision-language model with a reasoning language model, from files to files, without training

What a user needs is imported from here, as in `from vlm_merging import plan, merge, open_model, ask, score`.
A name is fetched from its module when it is first asked for: importing the package costs next to nothing."""

from importlib import import_module

__version__ = "0.1.0"

# The face: module -> the names that it lends
_NAMES = {
    'checkpoints.headers': 'Checkpoint',
    'checkpoints.relayout': 'relayout',
    'merging.families': 'FAMILIES Family pair_names',
    'merging.methods': ('METHODS Scale Share merge_method linear slerp task_arithmetic ties dare_linear '
                        'dare_ties breadcrumbs della sce'),
    'merging.matrices': 'iso_c wudi ip_merging neuron_fusion',
    'merging.recipe': 'Recipe',
    'merging.plan': 'plan',
    'merging.merge': 'merge',
    'merging.ways_out': 'what_would_stop',
    'benchmarks.pictures': 'Picture',
    'benchmarks.items': 'Benchmark Item',
    'benchmarks.load': 'BENCHMARKS load record_of',
    'benchmarks.prepare': 'prepare',
    'asking.models': 'LocalModel Reply prompt_inputs',
    'asking.opening': 'open_model',
    'asking.endpoint': 'Endpoint',
    'asking.engines': 'open_engine',
    'asking.ask': 'ask',
    'asking.replies': 'replies reply_table run_report',
    'asking.formats': 'FORMATS Format',
    'asking.results': 'import_replies',
    'scoring.wrappers': 'THINKING WRAPPERS',
    'scoring.problems': 'problems',
    'scoring.score': 'PROTOCOLS RULES score',
    'scoring.judge': 'judge_report judged',
    'comparing.samples': 'per_item verdict_flips',
    'comparing.summary': 'by_length summarize worst_case',
    'comparing.pairs': 'detectable holm items_needed',
    'comparing.findings': 'accuracy_said power_said verdict',
    'comparing.compare': 'Comparison compare',
    'comparing.held_out': 'HeldOut Trade held_out',
    'comparing.which_weight': 'choose_weight',
    'comparing.agreement': 'Agreement agreement',
    'comparing.layer_findings': 'MEASURES MEASURE_NAMES change_verdict profile_verdict',
    'probing.weights': 'by_layer by_module weight_stats weights_by_layer',
    'probing.diagnose': 'Diagnosis diagnose',
    'probing.layers': 'decoder_layers find_part image_positions wrapped_attention',
    'probing.masks': 'Mask PARTS WAYS masked masks means',
    'probing.lens': 'attention_mass logit_lens patched residual_norms',
    'probing.profile': 'profile_change profile_table',
    'probing.depth': 'Plateau depth_table plateau_table',
    'probing.mixing': 'Mixer',
    'probing.probe': 'Profile probe_folder profile profile_rows score_reply',
    'probing.sweep': 'Sweep ask_mixture sweep',
    'charts.pages': 'COLOURS save_chart show_offline titled together',
    'charts.score_charts': 'length_chart lengthening_chart pairs_chart scores_chart weights_chart',
    'charts.layer_charts': 'before_after_chart profile_chart',
    'charts.maps': 'layers_page weight_map',
    'widgets.reply_browser': 'ReplyBrowser',
    'widgets.merge_explorer': 'MergeExplorer',
    'widgets.layer_explorer': 'LayerExplorer',
    'lab.trio': 'lab_folder',
    'cli.report': 'report',
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)

def __getattr__(name):
    if name not in _HOMES:
        from vlm_merging.checkpoints.texts import did_you_mean
        meant = did_you_mean(name, __all__) or ' dir(vlm_merging) lists what there is.'
        raise AttributeError(f'vlm_merging has no {name!r}.{meant}')
    from vlm_merging._help import explain
    globals()[name] = value = explain(name, getattr(import_module(f'{__name__}.{_HOMES[name]}'), name))
    return value

def __dir__(): return sorted({*globals(), *__all__})
