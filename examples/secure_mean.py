"""A weighted mean of vectors that nobody shows to anybody: no model, no torch.

python examples/secure_mean.py
"""

import numpy as np

import fedvlm_secure as fs

hospitals = 10
readings = [np.sin(np.arange(1000) / 50 + shift).astype(np.float32) for shift in range(hospitals)]
patients = [40, 120, 300, 25, 80, 410, 60, 150, 90, 35]

# Hospital 3 falls silent before it uploads, hospital 7 after it did: 3 is not in the sum, 7 is.
result = fs.secure_mean(readings, patients, dropouts={3: "masked-input", 7: "unmask"})

expected = np.average([readings[i] for i in result.survivors], axis=0, weights=[patients[i] for i in result.survivors])
error = np.linalg.norm(result.mean - expected) / np.linalg.norm(expected)
print(f"in the sum: {result.survivors}, {result.total_weight} patients")
print(f"relative error against the plain weighted mean: {error:.1e}")
for phase, sizes in result.transcript.bytes_per_phase().items():
    print(f"{phase:13} {sizes['request']:>8,} bytes to the clients, {sizes['reply']:>8,} bytes to the server")
