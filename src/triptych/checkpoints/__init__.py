"""Weight files ↔ {published name: tensor}.

names.py says what the files are called, locate.py finds them, index.py reads and plans shards, checkpoint.py is the
lazy view of all tensors; one module per format (safetensors_file.py, pickle_torch.py) reads and writes single files.
renaming.py gives the tensors of original releases their published names.
loading_torch.py fits tensors to a model, pretrained_torch.py is `from_pretrained` and `save_pretrained`.
"""
