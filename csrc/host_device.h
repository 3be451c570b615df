// Marks what kernels and the host both call.
#pragma once

#ifdef __CUDACC__
#define RSPRUNE_HOST_DEVICE __host__ __device__
#else
#define RSPRUNE_HOST_DEVICE
#endif
