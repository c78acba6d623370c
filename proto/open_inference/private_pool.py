"""The descriptor pool of package `inference`.

tritonclient and KServe's client each register a package of that name in protobuf's default pool; see
scripts/generate_protos.py.
"""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
