/* 3×3 convolutions in float32 by Winograd's F(4×4, 3×3), for edm/networks/winograd.py, which states the algorithm.
 *
 * Images are cut into tiles of 4×4 results. A unit is a band of tiles across an image; a block is some units, whose
 * transformed tiles fit into a cache. A vector holds LANES channels of one pixel, or of one of a transform's 36 points.
 * The order of every sum is fixed: results depend neither on the number of threads nor on the size of blocks.
 */

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#define ROWS 8 /* of a product, which stay in registers with up to three vectors each */
#else
#define LANES 8
#define ROWS 4
#endif
#define RESULTS 4
#define SIDE 6
#define POINTS (SIDE * SIDE)
#define TAPS 3
#define UNIT 64 /* a unit of several rows of tiles has at most so many rows times the image's width in pixels */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef float loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int order __attribute__((vector_size(4 * LANES)));
typedef struct {
    ptrdiff_t images, height, width, channels;
    ptrdiff_t last; /* whether channels are last in memory */
} Shape;
typedef struct {
    ptrdiff_t image, row, rows; /* of tiles */
} Unit;
typedef struct {
    ptrdiff_t outputs, inputs, rows, columns; /* steps in memory */
} Steps;
typedef struct {
    ptrdiff_t size;             /* of a group of channels, which divides LANES; 0 for no normalisation */
    const float *weight, *bias; /* [channels], or [images, channels] */
    ptrdiff_t step;             /* of these between images */
    const float *offset;        /* [images, channels], which is added to the image before, or null */
    float eps;
} Norm;
typedef struct {
    const float *images; /* like the result, to which they are added, or null */
    float factor;        /* of the sum */
} Join;

static inline vector load(const float *from) { return *(const loose *)from; }
static inline void store(float *to, vector v) { *(loose *)to = v; }
static inline ptrdiff_t least(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static inline ptrdiff_t most(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static inline ptrdiff_t up(ptrdiff_t n, ptrdiff_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* `count` numbers and zeros. */
static inline vector some(const float *from, ptrdiff_t step, ptrdiff_t count) {
    if (step == 1 && count == LANES) return load(from);
    float v[LANES] = {0};
    for (ptrdiff_t i = 0; i < count; i++) v[i] = from[i * step];
    return load(v);
}

/* Exchanges rows and columns of LANES × LANES numbers. */
static inline void transpose(vector *v) {
#ifdef __AVX512F__
    const order low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
#else
    const order low = {0, 8, 1, 9, 2, 10, 3, 11};
#endif
    const order high = low + LANES / 2;
    for (int step = 1; step < LANES; step *= 2) {
        vector w[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            w[2 * i] = __builtin_shuffle(v[i], v[i + LANES / 2], low);
            w[2 * i + 1] = __builtin_shuffle(v[i], v[i + LANES / 2], high);
        }
        memcpy(v, w, sizeof w);
    }
}

/* ---- The transforms, of one column or row. */

/* The sums and differences of two pairs, which are the rows 1 to 4 of a transform. */
static inline void pairs(vector *y, ptrdiff_t r, vector even, vector odd, vector even2, vector odd2) {
    y[r] = even + odd;
    y[2 * r] = even - odd;
    y[3 * r] = even2 + odd2;
    y[4 * r] = even2 - odd2;
}

static inline void times_bt(const vector *x, ptrdiff_t s, vector *y, ptrdiff_t r) {
    y[0] = 4 * x[0] - 5 * x[2 * s] + x[4 * s];
    pairs(y, r, x[4 * s] - 4 * x[2 * s], x[3 * s] - 4 * x[s], x[4 * s] - x[2 * s], 2 * (x[3 * s] - x[s]));
    y[5 * r] = 4 * x[s] - 5 * x[3 * s] + x[5 * s];
}

static inline void times_at(const vector *x, ptrdiff_t s, vector *y, ptrdiff_t r) {
    vector sum1 = x[s] + x[2 * s], difference1 = x[s] - x[2 * s];
    vector sum2 = x[3 * s] + x[4 * s], difference2 = x[3 * s] - x[4 * s];
    y[0] = x[0] + sum1 + sum2;
    y[r] = difference1 + 2 * difference2;
    y[2 * r] = sum1 + 4 * sum2;
    y[3 * r] = difference1 + 8 * difference2 + x[5 * s];
}

static inline void times_a(const vector *x, ptrdiff_t s, vector *y, ptrdiff_t r) {
    y[0] = x[0];
    pairs(y, r, x[0] + x[2 * s], x[s] + x[3 * s], x[0] + 4 * x[2 * s], 2 * x[s] + 8 * x[3 * s]);
    y[5 * r] = x[3 * s];
}

static inline void times_g(const vector *x, ptrdiff_t s, vector *y, ptrdiff_t r) {
    y[0] = x[0] * (1.f / 4);
    pairs(y, r, (x[0] + x[2 * s]) * (-1.f / 6), x[s] * (-1.f / 6), x[0] * (1.f / 24) + x[2 * s] * (1.f / 6),
          x[s] * (1.f / 12));
    y[5 * r] = x[2 * s];
}

static inline void times_gt(const vector *x, ptrdiff_t s, vector *y, ptrdiff_t r) {
    vector sum1 = (x[s] + x[2 * s]) * (-1.f / 6), difference1 = (x[2 * s] - x[s]) * (1.f / 6);
    vector sum2 = x[3 * s] + x[4 * s], difference2 = x[3 * s] - x[4 * s];
    y[0] = x[0] * (1.f / 4) + sum1 + sum2 * (1.f / 24);
    y[r] = difference1 + difference2 * (1.f / 12);
    y[2 * r] = sum1 + sum2 * (1.f / 6) + x[5 * s];
}

/* ---- Images: channels from and to vectors. */

/* Copies rows first to last of the channels from c on to [last − first, width + 2 border]. Pixels outside the image,
 * which are those of the border and of rows before the first and after the last, are zeros. */
static void read_rows(vector *to, const float *x, const Shape *s, ptrdiff_t image, ptrdiff_t first, ptrdiff_t last,
                      ptrdiff_t c, int border) {
    ptrdiff_t width = s->width + 2 * border, count = least(LANES, s->channels - c), pixels = s->height * s->width;
    ptrdiff_t from = first < 0 ? 0 : first, until = least(last, s->height), row, column;
    if (first < 0) memset(to, 0, sizeof(vector) * width * -first);
    if (last > s->height) memset(to + width * (s->height - first), 0, sizeof(vector) * width * (last - s->height));
    if (border)
        for (row = from; row < until; row++)
            to[(row - first) * width] = to[(row - first + 1) * width - 1] = (vector){0};
    to += (from - first) * width + border;
    if (s->last) {
        const float *start = x + (image * pixels + from * s->width) * s->channels + c;
        for (row = from; row < until; row++, to += width)
            for (column = 0; column < s->width; column++, start += s->channels)
                to[column] = count == LANES ? load(start) : some(start, 1, count);
        return;
    }
    const float *start = x + (image * s->channels + c) * pixels + from * s->width;
    ptrdiff_t length = (until - from) * s->width, at = 0;
    row = column = 0;
    for (; at + LANES <= length; at += LANES) {
        vector v[LANES];
        for (ptrdiff_t i = 0; i < LANES; i++) v[i] = i < count ? load(start + i * pixels + at) : (vector){0};
        transpose(v);
        for (ptrdiff_t i = 0; i < LANES; i++) {
            to[row * width + column] = v[i];
            if (++column == s->width) column = 0, row++;
        }
    }
    for (; at < length; at++) {
        to[row * width + column] = some(start + at, pixels, count);
        if (++column == s->width) column = 0, row++;
    }
}

/* Copies [rows, width] to the channels from c on of rows from `first` on. */
static void write_rows(float *y, const vector *from, const Shape *s, ptrdiff_t image, ptrdiff_t first, ptrdiff_t rows,
                       ptrdiff_t c, Join join) {
    ptrdiff_t count = least(LANES, s->channels - c), pixels = s->height * s->width, length = rows * s->width, at = 0;
    if (s->last) {
        float *start = y + (image * pixels + first * s->width) * s->channels + c;
        for (; at < length; at++, start += s->channels) {
            if (count == LANES) store(start, from[at]);
            else memcpy(start, from + at, 4 * count);
        }
        return;
    }
    float *start = y + (image * s->channels + c) * pixels + first * s->width;
    for (; at + LANES <= length; at += LANES) {
        vector v[LANES];
        memcpy(v, from + at, sizeof v);
        transpose(v);
        for (ptrdiff_t i = 0; i < count; i++) {
            if (join.images) v[i] = (v[i] + load(join.images + (start - y) + i * pixels + at)) * join.factor;
            store(start + i * pixels + at, v[i]);
        }
    }
    for (; at < length; at++)
        for (ptrdiff_t i = 0; i < count; i++) start[i * pixels + at] = from[at][i];
}

/* ---- Group normalisation and SiLU of whole images in vectors of channels. */

static inline vector chosen(order where, vector a, vector b) {
    return (vector)((where & (order)a) | (~where & (order)b));
}

/* x / (1 + e^−x) with a relative error of 2·10⁻⁷; below −87, where it is about 0, x · 10⁻³⁸. */
static inline vector silu(vector x) {
    const vector most = (vector){0} + 126.f, to_whole = (vector){0} + 12582912.f; /* 1.5 · 2²³ */
    vector t = x * -1.442695041f;
    t = chosen(t > most, most, t);
    t = chosen(t < -most, -most, t);
    vector n = t + to_whole, r = t - (n - to_whole); /* 2^t = 2^n 2^r with |r| ≤ ½; n is in the last bits of its float */
    vector p = 1.33335581e-3f + r * 1.54035304e-4f;
    p = 5.55041087e-2f + r * (9.61812911e-3f + r * p);
    p = 1.f + r * (6.93147181e-1f + r * (2.40226507e-1f + r * p));
    return x / (1.f + (vector)((order)p + ((order)n << 23)));
}

/* The mean over each group of channels. */
static inline vector mean_of(vector v, ptrdiff_t size) {
    for (ptrdiff_t i = 0; i < LANES; i += size) {
        float total = 0;
        for (ptrdiff_t k = i; k < i + size; k++) total += v[k];
        for (ptrdiff_t k = i; k < i + size; k++) v[k] = total / size;
    }
    return v;
}

/* Normalises [height, width] between borders of one pixel, for the channels from c on, and applies SiLU. */
static void normalise(vector *x, const Shape *s, const Norm *norm, ptrdiff_t image, ptrdiff_t c) {
    ptrdiff_t count = least(LANES, s->channels - c), width = s->width + 2;
    float number = s->height * s->width;
    vector offset = norm->offset ? some(norm->offset + image * s->channels + c, 1, count) : (vector){0};
    vector total = {0}, squares = {0};
    x += width + 1;
    for (ptrdiff_t row = 0; row < s->height; row++)
        for (ptrdiff_t column = 0; column < s->width; column++) total += x[row * width + column];
    vector shift = offset - mean_of(total / number + offset, norm->size);
    for (ptrdiff_t row = 0; row < s->height; row++)
        for (ptrdiff_t column = 0; column < s->width; column++) {
            vector v = x[row * width + column] + shift;
            squares += v * v;
        }
    vector factor = mean_of(squares / number, norm->size);
    for (int i = 0; i < LANES; i++) factor[i] = 1.f / sqrtf(factor[i] + norm->eps);
    factor *= some(norm->weight + image * norm->step + c, 1, count);
    shift = shift * factor + some(norm->bias + image * norm->step + c, 1, count);
    for (ptrdiff_t row = 0; row < s->height; row++)
        for (ptrdiff_t column = 0; column < s->width; column++)
            x[row * width + column] = silu(x[row * width + column] * factor + shift);
}

/* ---- Units and blocks. */

typedef struct {
    Shape in, out;
    int vectors; /* of a panel of outputs */
    ptrdiff_t columns, unit_rows, units_of_image, units, units_of_block, blocks;
    ptrdiff_t deep, wide, step_in, step_out; /* padded channels; floats between points of transformed tiles */
    ptrdiff_t scratch;                       /* floats */
} Plan;

/* Blocks of as many tiles as have room in so many bytes, but at least 48, and an equal number of blocks per thread. */
static Plan plan(Shape in, ptrdiff_t outputs, ptrdiff_t bytes, ptrdiff_t threads) {
    Plan p = {.in = in, .out = in, .deep = up(in.channels, LANES), .wide = up(outputs, LANES)};
    p.out.channels = outputs;
    p.vectors = p.wide / LANES % 3 == 0 ? 3 : p.wide / LANES % 2 == 0 ? 2 : 1;
    ptrdiff_t rows = in.height / RESULTS;
    p.columns = in.width / RESULTS;
    p.unit_rows = most(1, least(UNIT / in.width, rows));
    p.units_of_image = (rows + p.unit_rows - 1) / p.unit_rows;
    p.units = in.images * p.units_of_image;
    ptrdiff_t room = most(48, bytes / (4 * POINTS * (p.deep + p.wide))) / (p.unit_rows * p.columns);
    ptrdiff_t blocks = up((p.units + most(1, room) - 1) / most(1, room), threads);
    p.units_of_block = most(1, (p.units + blocks - 1) / most(1, blocks));
    p.blocks = (p.units + p.units_of_block - 1) / p.units_of_block;
    /* One vector more, so that the points do not share a set of the cache. */
    ptrdiff_t tiles = up(p.units_of_block * p.unit_rows * p.columns, ROWS);
    p.step_in = tiles * p.deep + LANES;
    p.step_out = tiles * p.wide + LANES;
    p.scratch = (RESULTS * p.unit_rows + 2) * (in.width + 2) * LANES;
    return p;
}

static inline Unit unit_at(const Plan *p, ptrdiff_t index) {
    ptrdiff_t row = index % p->units_of_image * p->unit_rows;
    return (Unit){index / p->units_of_image, row, least(p->unit_rows, p->in.height / RESULTS - row)};
}

/* The number of a unit's first tile. */
static inline ptrdiff_t tile_of(const Plan *p, Unit unit) {
    return (unit.image * (p->in.height / RESULTS) + unit.row) * p->columns;
}

/* Bᵀ x B of a unit's tiles, the first of which is number `tile` of the block. */
static void transform_input(float *to, ptrdiff_t stride, ptrdiff_t tile, const float *x, const Shape *s,
                            const Norm *norm, Unit unit, vector *scratch) {
    ptrdiff_t padded = up(s->channels, LANES), columns = s->width / RESULTS, width = s->width + 2;
    for (ptrdiff_t c = 0; c < s->channels; c += LANES) {
        ptrdiff_t first = unit.row * RESULTS - 1;
        read_rows(scratch, x, s, unit.image, first, first + unit.rows * RESULTS + 2, c, 1);
        if (norm->size) normalise(scratch, s, norm, unit.image, c);
        float *start = to + tile * padded + c;
        for (ptrdiff_t row = 0; row < unit.rows; row++)
            for (ptrdiff_t column = 0; column < columns; column++, start += padded) {
                const vector *from = scratch + row * RESULTS * width + column * RESULTS;
                vector half[POINTS], done[SIDE];
                for (int i = 0; i < SIDE; i++) times_bt(from + i, width, half + i, SIDE);
                for (int i = 0; i < SIDE; i++) {
                    times_bt(half + SIDE * i, 1, done, 1);
                    for (int j = 0; j < SIDE; j++) store(start + (SIDE * i + j) * stride, done[j]);
                }
            }
    }
}

/* A g Aᵀ of a unit's tiles of a gradient. */
static void transform_gradient(float *to, ptrdiff_t stride, ptrdiff_t tile, const float *g, const Shape *s, Unit unit,
                               vector *scratch) {
    ptrdiff_t padded = up(s->channels, LANES), columns = s->width / RESULTS, width = s->width;
    for (ptrdiff_t c = 0; c < s->channels; c += LANES) {
        ptrdiff_t first = unit.row * RESULTS;
        read_rows(scratch, g, s, unit.image, first, first + unit.rows * RESULTS, c, 0);
        float *start = to + tile * padded + c;
        for (ptrdiff_t row = 0; row < unit.rows; row++)
            for (ptrdiff_t column = 0; column < columns; column++, start += padded) {
                const vector *from = scratch + row * RESULTS * width + column * RESULTS;
                vector half[SIDE * RESULTS], done[SIDE];
                for (int i = 0; i < RESULTS; i++) times_a(from + i, width, half + i, RESULTS);
                for (int i = 0; i < SIDE; i++) {
                    times_a(half + RESULTS * i, 1, done, 1);
                    for (int j = 0; j < SIDE; j++) store(start + (SIDE * i + j) * stride, done[j]);
                }
            }
    }
}

/* Aᵀ m A plus bias of a unit's tiles, to y. */
static void transform_output(float *y, const Shape *s, Unit unit, const float *from, ptrdiff_t stride, ptrdiff_t tile,
                             const float *bias, Join join, vector *scratch) {
    ptrdiff_t padded = up(s->channels, LANES), columns = s->width / RESULTS;
    for (ptrdiff_t c = 0; c < s->channels; c += LANES) {
        const float *start = from + tile * padded + c;
        vector offset = bias ? some(bias + c, 1, least(LANES, s->channels - c)) : (vector){0};
        for (ptrdiff_t row = 0; row < unit.rows; row++)
            for (ptrdiff_t column = 0; column < columns; column++, start += padded) {
                vector m[SIDE], half[SIDE * RESULTS], done[RESULTS];
                for (int i = 0; i < SIDE; i++) {
                    for (int j = 0; j < SIDE; j++) m[j] = load(start + (SIDE * i + j) * stride);
                    times_at(m, 1, half + RESULTS * i, 1);
                }
                vector *to = scratch + row * RESULTS * s->width + column * RESULTS;
                for (int i = 0; i < RESULTS; i++) {
                    times_at(half + i, RESULTS, done, 1);
                    for (int j = 0; j < RESULTS; j++) to[j * s->width + i] = done[j] + offset;
                }
            }
        write_rows(y, scratch, s, unit.image, unit.row * RESULTS, unit.rows * RESULTS, c, join);
    }
}

/* ---- Products. */

/* c [ROWS, vectors · LANES] (+)= Σ_k a[k, row] b[k, ·]; a's steps between rows and between k. */
#define PRODUCT(VECTORS)                                                                                              \
    static void product_##VECTORS(float *c, ptrdiff_t step_c, const float *a, ptrdiff_t row_a, ptrdiff_t step_a,      \
                                  const float *b, ptrdiff_t step_b, ptrdiff_t length, int add) {                      \
        vector sums[ROWS][VECTORS];                                                                                   \
        for (int i = 0; i < ROWS; i++)                                                                                \
            for (int j = 0; j < VECTORS; j++) sums[i][j] = add ? load(c + i * step_c + j * LANES) : (vector){0};      \
        for (ptrdiff_t k = 0; k < length; k++, a += step_a, b += step_b)                                              \
            for (int i = 0; i < ROWS; i++)                                                                            \
                for (int j = 0; j < VECTORS; j++) sums[i][j] += a[i * row_a] * load(b + j * LANES);                   \
        for (int i = 0; i < ROWS; i++)                                                                                \
            for (int j = 0; j < VECTORS; j++) store(c + i * step_c + j * LANES, sums[i][j]);                          \
    }
PRODUCT(1)
PRODUCT(2)
PRODUCT(3)

static inline void product(int vectors, float *c, ptrdiff_t step_c, const float *a, ptrdiff_t row_a, ptrdiff_t step_a,
                           const float *b, ptrdiff_t step_b, ptrdiff_t length, int add) {
    if (vectors == 3) product_3(c, step_c, a, row_a, step_a, b, step_b, length, add);
    else if (vectors == 2) product_2(c, step_c, a, row_a, step_a, b, step_b, length, add);
    else product_1(c, step_c, a, row_a, step_a, b, step_b, length, add);
}

static inline float *tap_of(const float *w, Steps s, ptrdiff_t output, ptrdiff_t input, int tap) {
    return (float *)w + output * s.outputs + input * s.inputs + tap / TAPS * s.rows + tap % TAPS * s.columns;
}

/* ---- What Python calls. */

/* Floats of transformed filters. */
ptrdiff_t filters_size(ptrdiff_t inputs, ptrdiff_t outputs) { return POINTS * (inputs * up(outputs, LANES) + LANES); }

/* Floats that `convolve` uses. */
ptrdiff_t convolve_size(Shape x, ptrdiff_t outputs, ptrdiff_t bytes, ptrdiff_t threads) {
    Plan p = plan(x, outputs, bytes, threads);
    return threads * (POINTS * (p.step_in + p.step_out) + p.scratch);
}

/* Floats that `weight_gradient` uses. */
ptrdiff_t weight_gradient_size(Shape x, ptrdiff_t outputs, ptrdiff_t bytes, ptrdiff_t threads) {
    Plan p = plan(x, outputs, bytes, 1);
    return POINTS * (p.step_in + p.step_out + p.deep * p.wide) + threads * p.scratch;
}

/* u = G w Gᵀ: [points, panels, inputs, outputs of a panel]. */
void transform_filters(float *u, const float *w, Steps w_steps, ptrdiff_t inputs, ptrdiff_t outputs, ptrdiff_t threads) {
    Plan p = plan((Shape){0, RESULTS, RESULTS, inputs, 0}, outputs, 0, 1);
    ptrdiff_t panel = p.vectors * LANES, step = inputs * p.wide + LANES;
#pragma omp parallel for num_threads(threads)
    for (ptrdiff_t o = 0; o < outputs; o += LANES)
        for (ptrdiff_t i = 0; i < inputs; i += LANES) {
            ptrdiff_t some_outputs = least(LANES, outputs - o), some_inputs = least(LANES, inputs - i);
            vector taps[LANES][TAPS * TAPS];
            for (int k = 0; k < TAPS * TAPS; k++) {
                const float *from = tap_of(w, w_steps, o, i, k);
                vector v[LANES];
                if (w_steps.inputs == 1) {
                    for (ptrdiff_t n = 0; n < LANES; n++)
                        v[n] = n < some_outputs ? some(from + n * w_steps.outputs, 1, some_inputs) : (vector){0};
                    transpose(v);
                } else
                    for (ptrdiff_t n = 0; n < some_inputs; n++)
                        v[n] = some(from + n * w_steps.inputs, w_steps.outputs, some_outputs);
                for (ptrdiff_t n = 0; n < some_inputs; n++) taps[n][k] = v[n];
            }
            float *to = u + o / panel * panel * inputs + i * panel + o % panel;
            for (ptrdiff_t n = 0; n < some_inputs; n++, to += panel) {
                vector half[SIDE * TAPS], done[SIDE];
                for (int k = 0; k < TAPS; k++) times_g(taps[n] + k, TAPS, half + k, TAPS);
                for (int k = 0; k < SIDE; k++) {
                    times_g(half + TAPS * k, 1, done, 1);
                    for (int j = 0; j < SIDE; j++) store(to + (SIDE * k + j) * step, done[j]);
                }
            }
        }
}

/* y = x convolved with the transformed filters u, plus bias if there is one. Before, x may be normalised, after it, y
 * joined, if x are images of one unit with pixels last. */
void convolve(float *y, const float *x, Shape x_shape, Norm norm, const float *u, const float *bias, Join join,
              ptrdiff_t outputs, float *space, ptrdiff_t bytes, ptrdiff_t threads) {
    const Plan p = plan(x_shape, outputs, bytes, threads);
    ptrdiff_t panel = p.vectors * LANES, step = x_shape.channels * p.wide + LANES;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (ptrdiff_t block = 0; block < p.blocks; block++) {
        float *v = space + omp_get_thread_num() * (POINTS * (p.step_in + p.step_out) + p.scratch);
        float *m = v + POINTS * p.step_in;
        vector *scratch = (vector *)(m + POINTS * p.step_out);
        ptrdiff_t first = block * p.units_of_block, until = least(first + p.units_of_block, p.units);
        ptrdiff_t before = tile_of(&p, unit_at(&p, first)), tiles = tile_of(&p, unit_at(&p, until)) - before;
        for (ptrdiff_t index = first; index < until; index++) {
            Unit unit = unit_at(&p, index);
            transform_input(v, p.step_in, tile_of(&p, unit) - before, x, &p.in, &norm, unit, scratch);
        }
        for (ptrdiff_t point = 0; point < POINTS; point++) {
            float *a = v + point * p.step_in, *c = m + point * p.step_out;
            memset(a + tiles * p.deep, 0, 4 * p.deep * (up(tiles, ROWS) - tiles));
            for (ptrdiff_t o = 0; o < p.wide; o += panel)
                for (ptrdiff_t t = 0; t < tiles; t += ROWS)
                    product(p.vectors, c + t * p.wide + o, p.wide, a + t * p.deep, p.deep, 1,
                            u + point * step + o * x_shape.channels, panel, x_shape.channels, 0);
        }
        for (ptrdiff_t index = first; index < until; index++) {
            Unit unit = unit_at(&p, index);
            transform_output(y, &p.out, unit, m, p.step_out, tile_of(&p, unit) - before, bias, join, scratch);
        }
    }
}

/* w = the gradient of the weight, for that of the result, g. */
void weight_gradient(float *w, Steps w_steps, const float *x, Shape x_shape, const float *g, ptrdiff_t outputs,
                     float *space, ptrdiff_t bytes, ptrdiff_t threads) {
    const Plan p = plan(x_shape, outputs, bytes, 1);
    const Norm none = {0};
    ptrdiff_t panel = p.vectors * LANES, step = p.deep * p.wide;
    float *v = space, *h = v + POINTS * p.step_in, *sums = h + POINTS * p.step_out;
#pragma omp parallel num_threads(threads)
    {
        vector *scratch = (vector *)(sums + POINTS * step + omp_get_thread_num() * p.scratch);
        for (ptrdiff_t first = 0; first < p.units; first += p.units_of_block) {
            ptrdiff_t until = least(first + p.units_of_block, p.units), before = tile_of(&p, unit_at(&p, first));
            ptrdiff_t tiles = tile_of(&p, unit_at(&p, until)) - before;
#pragma omp for schedule(static)
            for (ptrdiff_t index = first; index < until; index++) {
                Unit unit = unit_at(&p, index);
                transform_input(v, p.step_in, tile_of(&p, unit) - before, x, &p.in, &none, unit, scratch);
                transform_gradient(h, p.step_out, tile_of(&p, unit) - before, g, &p.out, unit, scratch);
            }
#pragma omp for schedule(static)
            for (ptrdiff_t point = 0; point < POINTS; point++)
                for (ptrdiff_t o = 0; o < p.wide; o += panel)
                    for (ptrdiff_t i = 0; i < p.deep; i += ROWS)
                        product(p.vectors, sums + point * step + i * p.wide + o, p.wide, v + point * p.step_in + i, 1,
                                p.deep, h + point * p.step_out + o, p.wide, tiles, first > 0);
        }
#pragma omp for schedule(static)
        for (ptrdiff_t i = 0; i < x_shape.channels; i += LANES)
            for (ptrdiff_t o = 0; o < outputs; o += LANES) {
                ptrdiff_t some_outputs = least(LANES, outputs - o), some_inputs = least(LANES, x_shape.channels - i);
                vector taps[TAPS * TAPS][LANES];
                for (ptrdiff_t n = 0; n < some_inputs; n++) {
                    vector m[SIDE], half[SIDE * TAPS], done[TAPS];
                    for (int k = 0; k < SIDE; k++) {
                        for (int j = 0; j < SIDE; j++) m[j] = load(sums + (SIDE * k + j) * step + (i + n) * p.wide + o);
                        times_gt(m, 1, half + TAPS * k, 1);
                    }
                    for (int k = 0; k < TAPS; k++) {
                        times_gt(half + k, TAPS, done, 1);
                        for (int j = 0; j < TAPS; j++) taps[TAPS * j + k][n] = done[j];
                    }
                }
                for (int k = 0; k < TAPS * TAPS; k++) {
                    float *to = tap_of(w, w_steps, o, i, k);
                    int rows = w_steps.inputs == 1 && some_inputs == LANES;
                    if (rows) transpose(taps[k]);
                    for (ptrdiff_t n = 0; n < (rows ? some_outputs : some_inputs); n++) {
                        if (rows) store(to + n * w_steps.outputs, taps[k][n]);
                        else
                            for (ptrdiff_t m = 0; m < some_outputs; m++)
                                to[m * w_steps.outputs + n * w_steps.inputs] = taps[k][n][m];
                    }
                }
            }
    }
}
