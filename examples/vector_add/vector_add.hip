// Three memory-bound kernels, timed one by one and checked: vector add, saxpy, sum.
//
//   ./build/vector_add [N [ITERATIONS]]
//
// N is the number of floats in each vector (default 2^24), ITERATIONS how often each kernel is timed (default 20).
// Prints one line per kernel and PASSED; exits 1 when a result is wrong or HIP reports an error, 2 for bad arguments.

#include <hip/hip_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#ifndef BLOCK_SIZE
#define BLOCK_SIZE 256
#endif

static_assert(BLOCK_SIZE >= 1 && BLOCK_SIZE <= 1024, "a block holds 1 to 1024 threads");

#define HIP_CHECK(call)                                                                              \
    do {                                                                                             \
        const hipError_t status = (call);                                                            \
        if (status != hipSuccess) {                                                                  \
            std::fprintf(stderr, "HIP error: %s at %s:%d\n", hipGetErrorString(status), __FILE__, __LINE__); \
            std::exit(1);                                                                            \
        }                                                                                            \
    } while (0)

__global__ __launch_bounds__(BLOCK_SIZE) void vector_add(const float* __restrict__ a, const float* __restrict__ b,
                                                         float* __restrict__ c, size_t n) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

__global__ __launch_bounds__(BLOCK_SIZE) void saxpy(float alpha, const float* __restrict__ x,
                                                    const float* __restrict__ y, float* __restrict__ out, size_t n) {
    const size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) out[i] = alpha * x[i] + y[i];
}

// Sum a vector: each thread strides over it, each block adds its threads up in LDS. Any block size will do.
__global__ __launch_bounds__(BLOCK_SIZE) void sum(const float* __restrict__ x, double* __restrict__ total, size_t n) {
    __shared__ double partial[BLOCK_SIZE];
    double mine = 0.0;
    const size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
    for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) mine += x[i];
    partial[threadIdx.x] = mine;
    __syncthreads();
    for (unsigned width = blockDim.x; width > 1;) {
        const unsigned half = (width + 1) / 2;
        if (threadIdx.x < width / 2) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
        width = half;
    }
    if (threadIdx.x == 0) atomicAdd(total, partial[0]);
}

// Time `launch` in ms: one run to warm up, then the mean of `iterations`, on the GPU's own clock.
template <typename Launch>
static float mean_ms(int iterations, Launch launch) {
    hipEvent_t began, ended;
    HIP_CHECK(hipEventCreate(&began));
    HIP_CHECK(hipEventCreate(&ended));
    launch();
    HIP_CHECK(hipGetLastError());
    HIP_CHECK(hipEventRecord(began, nullptr));
    for (int i = 0; i < iterations; ++i) launch();
    HIP_CHECK(hipGetLastError());
    HIP_CHECK(hipEventRecord(ended, nullptr));
    HIP_CHECK(hipEventSynchronize(ended));
    float total_ms = 0.0f;
    HIP_CHECK(hipEventElapsedTime(&total_ms, began, ended));
    HIP_CHECK(hipEventDestroy(began));
    HIP_CHECK(hipEventDestroy(ended));
    return total_ms / static_cast<float>(iterations);
}

static void report(const char* kernel, float ms, double bytes) {
    std::printf("%s: %.6f ms, %.1f GB/s\n", kernel, ms, bytes / (ms * 1e-3) / 1e9);
}

static bool all_equal(const std::vector<float>& got, float expected, const char* kernel) {
    for (size_t i = 0; i < got.size(); ++i) {
        if (got[i] != expected) {
            std::fprintf(stderr, "%s: element %zu is %g, not %g\n", kernel, i, got[i], expected);
            return false;
        }
    }
    return true;
}

int main(int argc, char** argv) {
    const long long wanted = argc > 1 ? std::atoll(argv[1]) : 1LL << 24;
    const int iterations = argc > 2 ? std::atoi(argv[2]) : 20;
    if (wanted < 1 || iterations < 1) {
        std::fprintf(stderr, "usage: %s [N [ITERATIONS]] (both at least 1)\n", argv[0]);
        return 2;
    }
    const size_t n = static_cast<size_t>(wanted);
    const size_t bytes = n * sizeof(float);
    const unsigned blocks = static_cast<unsigned>((n + BLOCK_SIZE - 1) / BLOCK_SIZE);
    const unsigned sum_blocks = blocks < 1216 ? blocks : 1216;  // four for each of an MI300X's 304 compute units

    hipDeviceProp_t properties;
    HIP_CHECK(hipGetDeviceProperties(&properties, 0));
    std::printf("device: %s\n", properties.name);
    std::printf("n: %zu, block size: %d, iterations: %d\n", n, BLOCK_SIZE, iterations);

    float *a = nullptr, *b = nullptr, *c = nullptr;
    double* total = nullptr;
    HIP_CHECK(hipMalloc(reinterpret_cast<void**>(&a), bytes));
    HIP_CHECK(hipMalloc(reinterpret_cast<void**>(&b), bytes));
    HIP_CHECK(hipMalloc(reinterpret_cast<void**>(&c), bytes));
    HIP_CHECK(hipMalloc(reinterpret_cast<void**>(&total), sizeof(double)));
    std::vector<float> host(n, 1.0f);
    HIP_CHECK(hipMemcpy(a, host.data(), bytes, hipMemcpyHostToDevice));
    host.assign(n, 2.0f);
    HIP_CHECK(hipMemcpy(b, host.data(), bytes, hipMemcpyHostToDevice));

    bool is_right = true;
    float ms = mean_ms(iterations, [=] { vector_add<<<blocks, BLOCK_SIZE>>>(a, b, c, n); });
    report("vector_add", ms, 3.0 * static_cast<double>(bytes));
    HIP_CHECK(hipMemcpy(host.data(), c, bytes, hipMemcpyDeviceToHost));
    is_right = all_equal(host, 3.0f, "vector_add") && is_right;

    ms = mean_ms(iterations, [=] { saxpy<<<blocks, BLOCK_SIZE>>>(2.0f, a, b, c, n); });
    report("saxpy", ms, 3.0 * static_cast<double>(bytes));
    HIP_CHECK(hipMemcpy(host.data(), c, bytes, hipMemcpyDeviceToHost));
    is_right = all_equal(host, 4.0f, "saxpy") && is_right;

    HIP_CHECK(hipMemset(total, 0, sizeof(double)));
    ms = mean_ms(iterations, [=] { sum<<<sum_blocks, BLOCK_SIZE>>>(a, total, n); });
    report("sum", ms, static_cast<double>(bytes));
    double sum_of_all = 0.0;
    HIP_CHECK(hipMemcpy(&sum_of_all, total, sizeof(double), hipMemcpyDeviceToHost));
    const double expected = static_cast<double>(n) * (iterations + 1);  // every timed run adds to the same total
    if (std::fabs(sum_of_all - expected) > 1e-9 * expected) {
        std::fprintf(stderr, "sum: %.17g, not %.17g\n", sum_of_all, expected);
        is_right = false;
    }

    HIP_CHECK(hipFree(a));
    HIP_CHECK(hipFree(b));
    HIP_CHECK(hipFree(c));
    HIP_CHECK(hipFree(total));
    std::puts(is_right ? "PASSED" : "FAILED");
    return is_right ? 0 : 1;
}
