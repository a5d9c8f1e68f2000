"""An unmodified Triton client asks a device that `variegate device serve car --port 8000` serves.

python triton_client.py [HOST:PORT] [FRAMES.npy]
"""

import sys

import numpy as np
import tritonclient.http as triton

address, frames = (sys.argv[1:] + ["localhost:8000", "frames.npy"][len(sys.argv) - 1 :])[:2]
images = np.load(frames)  # uint8 (N, C, H, W)
client = triton.InferenceServerClient(address)
question = triton.InferInput("image", images.shape, "UINT8")
question.set_data_from_numpy(images)
print(client.infer("copy", [question]).as_numpy("label"))
client.close()
