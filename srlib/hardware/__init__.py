"""Will it fit? shapes (sizes of a model, from its config.json), memory (bytes that training or sampling holds), machine
(the GPU or RAM at hand). Nothing here imports torch, for `srlib run` asks before it starts."""
