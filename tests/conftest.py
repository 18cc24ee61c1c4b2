"""One thread for every test: oversubscribed threads make a small suite many times slower."""

import torch

torch.set_num_threads(1)
