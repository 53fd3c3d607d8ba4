"A download that went wrong is told by its name: what lies there instead, and what is missing"
import os
import pytest
from vlm_merging.checkpoints.headers import Checkpoint
from vlm_merging.lab.tiny import make_llm

PAGE = b'\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>'
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n'
INSTEAD = {'page': (PAGE, 'is a web page'), 'xml': (b'<?xml version="1.0"?><Error/>', 'is a web page'),
           'pointer': (POINTER, 'pointer of git-lfs'), 'zeros': (bytes(999), 'download is not complete'),
           'words': (b'Entry not found', "a text that begins with 'Entry not found'"),
           'refusal': (b'{"error":"Access to model x is restricted"}'*9, 'a text that begins with')}


@pytest.mark.parametrize('container', ['safetensors', 'bin'])
@pytest.mark.parametrize('what', INSTEAD)
def test_what_lies_there_instead_of_weights(what, container, tmp_path):
    content, word = INSTEAD[what]
    folder = make_llm('llava', tmp_path/'llm', container=container)
    weights, = folder.glob(f'*.{container}')
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=word) as e: Checkpoint.open(folder)
    assert str(e.value).endswith('again.') and weights.name in str(e.value)


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors.index.json'])
@pytest.mark.parametrize('what', ['page', 'pointer', 'words'])
def test_what_lies_there_instead_of_json(what, name, tmp_path):
    content, word = INSTEAD[what]
    folder = make_llm('llava', tmp_path/'llm', shards=2)
    (folder/name).write_bytes(content)
    with pytest.raises(ValueError, match=word): Checkpoint.open(folder)


@pytest.mark.parametrize('container,size,word', [
    ('safetensors', 0, 'does not fit'), ('safetensors', 4, 'does not fit'),
    ('safetensors', 200, 'download is not complete'), ('safetensors', 5000, 'cut off'),
    ('bin', 0, 'not a plain file'), ('bin', 200, 'download is not complete'),
    ('bin', 5000, 'download is not complete')])
def test_weights_that_end_too_early(container, size, word, tmp_path):
    folder = make_llm('llava', tmp_path/'llm', container=container)
    weights, = folder.glob(f'*.{container}')
    os.truncate(weights, size)
    with pytest.raises(ValueError, match=word): Checkpoint.open(folder)


def test_files_that_an_index_names_and_that_are_not_there(tmp_path):
    folder = make_llm('llava', tmp_path/'llm', shards=3)
    one, two, three = sorted(folder.glob('*.safetensors'))
    two.unlink()
    with pytest.raises(ValueError, match=f'names {two.name}, which is missing. Down'): Checkpoint.open(folder)
    three.unlink()
    with pytest.raises(ValueError, match='and 1 more, which are missing. Download'): Checkpoint.open(folder)
    (folder/f'{two.name}.incomplete').touch()
    with pytest.raises(ValueError, match='not finished lies there'): Checkpoint.open(folder)
    (folder/f'{two.name}.incomplete').unlink()
    (folder/'.cache'/'huggingface'/'download').mkdir(parents=True)
    (folder/'.cache'/'huggingface'/'download'/'a1b2.incomplete').touch()
    with pytest.raises(ValueError, match='not finished lies there .a1b2.incomplete'): Checkpoint.open(folder)
    two.symlink_to(tmp_path/'blobs'/'0')
    with pytest.raises(ValueError, match='link to a file that is not there'): Checkpoint.open(folder)


def test_no_weights_but_the_beginning_of_some(tmp_path):
    folder = make_llm('llava', tmp_path/'llm')
    (folder/'model.safetensors').rename(folder/'model.safetensors.part')
    with pytest.raises(ValueError, match='download that was not finished lies there'): Checkpoint.open(folder)
