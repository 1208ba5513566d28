// An engine that echoir-export built, run from C++ with TensorRT alone: one tile of raw pixels in, one out.
//
//     g++ -std=c++17 engine.cpp -I/usr/local/cuda/include -L/usr/local/cuda/lib64 -lnvinfer -lcudart -o engine
//     ./engine denoise-fp16-tensorrt.engine < tile.rgb > restored.rgb
//
// For engines of `--io uint8`, batch 1 (TensorRT 10.3 to 11.4): one input and one output, [1, H, W, 3] uint8 RGB. An
// engine whose manifest says `upsampler: plugin` carries the kernel itself from TensorRT 10.9 on, so no plugin library is
// loaded here; one of JetPack 6 with the plugin class needs Python, so build it there with --no-plugin.

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

static int64_t pixels(nvinfer1::Dims const& shape) {
    int64_t count = 1;
    for (int i = 0; i < shape.nbDims; ++i) count *= shape.d[i];
    return count;
}

#define CHECK(call)                                                                    \
    if (cudaError_t error = (call); error != cudaSuccess) {                            \
        std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error));            \
        return 1;                                                                      \
    }

int main(int argc, char** argv) {
    if (argc != 2) return std::fprintf(stderr, "usage: engine ENGINE < tile.rgb > restored.rgb\n"), 2;
    std::ifstream file(argv[1], std::ios::binary);
    std::vector<char> const blob{std::istreambuf_iterator<char>(file), {}};
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime{nvinfer1::createInferRuntime(logger)};
    if (!runtime) return std::fprintf(stderr, "TensorRT does not start: no GPU, or no driver?\n"), 6;
    std::unique_ptr<nvinfer1::ICudaEngine> engine{runtime->deserializeCudaEngine(blob.data(), blob.size())};
    if (!engine) return std::fprintf(stderr, "%s: not an engine of this TensorRT and GPU\n", argv[1]), 4;
    std::unique_ptr<nvinfer1::IExecutionContext> context{engine->createExecutionContext()};
    if (!context || engine->getNbIOTensors() != 2) return std::fprintf(stderr, "not an engine of echoir\n"), 4;

    char const *source = engine->getIOTensorName(0), *sink = engine->getIOTensorName(1);
    if (engine->getTensorIOMode(source) != nvinfer1::TensorIOMode::kINPUT) std::swap(source, sink);
    nvinfer1::Dims const shape = engine->getTensorShape(source);
    bool const bytes = engine->getTensorDataType(source) == nvinfer1::DataType::kUINT8 &&
                       engine->getTensorDataType(sink) == nvinfer1::DataType::kUINT8;
    if (!bytes || pixels(shape) <= 0) return std::fprintf(stderr, "export it with --io uint8 --batch 1\n"), 4;

    std::vector<uint8_t> tile(pixels(shape)), restored(pixels(engine->getTensorShape(sink)));
    if (std::fread(tile.data(), 1, tile.size(), stdin) != tile.size())
        return std::fprintf(stderr, "a tile has %zu bytes\n", tile.size()), 3;

    void *in = nullptr, *out = nullptr;
    cudaStream_t stream = nullptr; // not the default one: TensorRT would wait for the whole device
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaMalloc(&in, tile.size()));
    CHECK(cudaMalloc(&out, restored.size()));
    context->setTensorAddress(source, in);
    context->setTensorAddress(sink, out);
    CHECK(cudaMemcpyAsync(in, tile.data(), tile.size(), cudaMemcpyHostToDevice, stream));
    if (!context->enqueueV3(stream)) return std::fprintf(stderr, "the engine did not run\n"), 6;
    CHECK(cudaMemcpyAsync(restored.data(), out, restored.size(), cudaMemcpyDeviceToHost, stream));
    CHECK(cudaStreamSynchronize(stream));
    std::fwrite(restored.data(), 1, restored.size(), stdout);
    CHECK(cudaFree(in));
    CHECK(cudaFree(out));
    CHECK(cudaStreamDestroy(stream));
    return 0;
}
