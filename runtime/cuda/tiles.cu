// Between one image on the device and the tiles of a model: cut, check, blend, finish.
//
// The same arithmetic in the same order as echoir/runtime/restorer.py, so both give the same bits: no fused
// multiply-add, true divisions. tiles.ptx is this file compiled ahead of time (benchmarks/tiles_ptx.py), because a
// device has no compiler; it is for compute capability 7.5, and the driver turns it into code for any later one.
//
// Rows of the image lie in rings: row y in slot y % ring. Pixels: kind 0 is uint8, 1 uint16, 2 float32.

struct Tiles {  // a batch of tiles: [N, C, h, w] or [N, h, w, C], float32 in [0, 1] or uint8
    int height, width, planes, channels_last, bytes;
};

__device__ static int element(Tiles t, int n, int y, int x, int c) {
    int pixel = (n * t.height + y) * t.width + x;
    int plane = (n * t.planes + c) * t.height + y;
    return t.channels_last ? pixel * t.planes + c : plane * t.width + x;
}

__device__ static float load(const void *data, int kind, int index) {
    if (kind == 0) return ((const unsigned char *)data)[index];
    if (kind == 1) return ((const unsigned short *)data)[index];
    return ((const float *)data)[index];
}

// An index that bounces at both ends of an axis of `size` pixels, as runtime/tiling.py's reflect.
__device__ static int reflected(int index, int size) {
    if (size == 1) return 0;
    index %= 2 * (size - 1);
    int mirrored = 2 * (size - 1) - index;
    return index < mirrored ? index : mirrored;
}

// Tiles first, first + 1, ... of a strip that begins at row `top`; beyond `last`, the last one again. The network may
// run several times for one place, once for each plane of the image: tile i is of place i / passes.
extern "C" __global__ void cut(const void *image, int kind, int channels, int width, int ring, int top, int rows,
                               const int *starts, int first, int last, int passes, int columns,
                               void *tiles, int height, int tile_width, int planes, int channels_last, int bytes) {
    Tiles t = {height, tile_width, planes, channels_last, bytes};
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, n = blockIdx.z;
    if (x >= t.width || y >= t.height) return;
    int tile = first + n < last ? first + n : last;
    int left = starts[tile / passes];
    int inside = width - left < columns ? width - left : columns;
    int pixel = ((top + reflected(y, rows)) % ring) * width + left + reflected(x, inside);
    float peak = kind == 0 ? 255.0f : kind == 1 ? 65535.0f : 1.0f;
#pragma unroll 1
    for (int c = 0; c < t.planes; c++) {
        float value = load(image, kind, pixel * channels + (passes > 1 ? tile % passes : channels == 1 ? 0 : c));
        if (t.bytes)
            ((unsigned char *)tiles)[element(t, n, y, x, c)] = (unsigned char)value;
        else
            ((float *)tiles)[element(t, n, y, x, c)] = value / peak;
    }
}

// What makes a tile suspect. flags[2 n]: 1 NaN, 2 infinite, 4 the output varies, 8 the input varies.
// flags[2 n + 1]: the bits of the output's first value as float.
extern "C" __global__ void check(const void *given, int height, int width, int planes, int given_last, int given_bytes,
                                 const void *made, int made_height, int made_width, int made_planes, int made_last,
                                 int made_bytes, int *flags) {
    Tiles in = {height, width, planes, given_last, given_bytes};
    Tiles out = {made_height, made_width, made_planes, made_last, made_bytes};
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y, n = blockIdx.z;
    int in_kind = in.bytes ? 0 : 2, out_kind = out.bytes ? 0 : 2, found = 0;
    if (x < out.width && y < out.height) {
        float first = load(made, out_kind, element(out, n, 0, 0, 0));
#pragma unroll 1
        for (int c = 0; c < out.planes; c++) {
            float value = load(made, out_kind, element(out, n, y, x, c));
            if (value != value) found |= 1;
            if (value - value != 0.0f && value == value) found |= 2;
            if (value != first) found |= 4;
        }
        if (x == 0 && y == 0) flags[2 * n + 1] = *(int *)&first;
    }
    if (x < in.width && y < in.height)
#pragma unroll 1
        for (int c = 0; c < in.planes; c++)
            if (load(given, in_kind, element(in, n, y, x, c)) != load(given, in_kind, element(in, n, 0, 0, c)))
                found |= 8;
    if (found & ~flags[2 * n]) atomicOr(&flags[2 * n], found);
}

// Adds weighted tiles to the sums, [ring, width, passes * planes], all in pixels behind the network: `scale` for each
// of the image. One thread holds one pixel, so tiles that overlap within a batch never meet, and are added in order.
extern "C" __global__ void blend(const void *tiles, int height, int tile_width, int planes, int channels_last,
                                 int bytes, const int *starts, int first, int count, int passes, int scale,
                                 const float *down, const float *across, float *sums, int width, int ring, int top,
                                 int rows, int columns) {
    Tiles t = {height, tile_width, planes, channels_last, bytes};
    int x = scale * starts[first / passes] + blockIdx.x * blockDim.x + threadIdx.x;
    int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= scale * starts[(first + count - 1) / passes] + columns || x >= width || y >= rows) return;
    float white = t.bytes ? 255.0f : 1.0f;
#pragma unroll 1
    for (int c = 0; c < passes * planes; c++) {
        float *sum = sums + (((top + y) % ring) * width + x) * passes * planes + c;
        float total = *sum;
#pragma unroll 1
        for (int n = 0; n < count; n++) {
            int place = (first + n) / passes, inside = x - scale * starts[place];
            if (inside < 0 || inside >= columns || (first + n) % passes != c / planes) continue;
            float value = load(tiles, t.bytes ? 0 : 2, element(t, n, y, inside, c % planes)) / white;
            total += value * down[y] * across[place * columns + inside];
        }
        *sum = total;
    }
}

// Finished rows of the sums, [rows, width, depth], as pixels, [rows, width, channels], which are their mean where the
// image has one; the sums start again from nothing.
extern "C" __global__ void finish(float *sums, int width, int ring, int top, int rows, int depth,
                                  void *pixels, int kind, int channels) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= width || y >= rows) return;
    float *sum = sums + (((top + y) % ring) * width + x) * depth, values[3];
#pragma unroll 1
    for (int c = 0; c < depth; c++) {
        values[c] = sum[c];
        sum[c] = 0.0f;
    }
    if (channels < depth) values[0] = (values[0] + values[1] + values[2]) / 3.0f;
#pragma unroll 1
    for (int c = 0; c < channels; c++) {
        int index = (y * width + x) * channels + c;
        if (kind == 2) {
            ((float *)pixels)[index] = values[c];
            continue;
        }
        float peak = kind == 0 ? 255.0f : 65535.0f, value = rintf(values[c] * peak);
        value = value < 0.0f ? 0.0f : value > peak ? peak : value;
        if (kind == 0)
            ((unsigned char *)pixels)[index] = (unsigned char)value;
        else
            ((unsigned short *)pixels)[index] = (unsigned short)value;
    }
}
