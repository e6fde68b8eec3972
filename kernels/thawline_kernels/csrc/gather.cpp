// Reads a parameter group from Python's own objects, without making a Python object for each pointer, stride and size.
//
// Owns what makes a parameter ordinary: a plain dense fp32 or bf16 tensor whose gradient and state have its device, shape and
// strides, and the device, dtypes and step count of the group's first such. All others are named in `rest`, and batches.py
// takes them, or refuses them with a message. Nothing that counts is kept from step to step, because DeepSpeed and FSDP swap
// tensors there; only addresses to prefetch are, which may be stale.
//
// While it gathers, no other Python runs: it calls nothing that makes an object the garbage collector tracks, frees one, hashes
// a tensor, or lets go of the GIL. So nothing it has looked at changes before it is read or written: that is done in the same
// call, with the GIL, or, where it takes long, with hold of the memory. No pointer is kept until the next call.
//
// Called through ctypes.PyDLL, which holds the GIL. Of Python only functions of its stable ABI are used, declared here, so that
// none of its headers is needed; of torch c10::TensorImpl, of the torch that is there when this is compiled.
#include "gather.h"

#undef TORCH_TARGET_VERSION  // this file is of one torch, the one it is compiled for
#include <c10/core/TensorImpl.h>
#include <torch/csrc/stable/c/shim.h>

#include <sys/types.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define WEAK __attribute__((weak))

using Object = void;  // a PyObject
using c10::DispatchKey, c10::TensorImpl;

extern "C" {
WEAK Object* PyObject_Type(Object*);
WEAK int PyDict_Next(Object*, ssize_t*, Object**, Object**);
WEAK Object* PyList_GetItem(Object*, ssize_t);
WEAK ssize_t PyList_Size(Object*);
WEAK int PyList_Append(Object*, Object*);
WEAK Object* PyTuple_GetItem(Object*, ssize_t);
WEAK Object* PyLong_FromSsize_t(ssize_t);
WEAK ssize_t PyLong_AsSsize_t(Object*);
WEAK int PyUnicode_CompareWithASCIIString(Object*, const char*);
WEAK void* PyEval_SaveThread();
WEAK void PyEval_RestoreThread(void*);
WEAK void Py_DecRef(Object*);
WEAK void PyErr_Clear();

const char* thawline_step(const Gathered*, const Scalars*, bool is_accurate, bool zero_grad);
const char* thawline_sums_of_squares(const Gathered*, double*);
}

namespace {

// Python's own, in the order of native.py.
enum Name { STEP, EXP_AVG, EXP_AVG_SQ, PEAK, MASTER, LOW, NUM_NAMES };
constexpr const char* NAMES[NUM_NAMES] = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "master", "low"};
enum Type { TENSOR, PARAMETER, STRING, NONE, NUM_TYPES };  // NONE: the object itself

Object* type_of(Object* object) {
    Object* const type = PyObject_Type(object);
    Py_DecRef(type);  // the object keeps it alive
    return type;
}

struct Python {
    std::array<Object*, NUM_NAMES> names{};
    std::array<Object*, NUM_TYPES> types;

    Python(Object* of_names, Object* of_types) {
        for (size_t n = 0; of_names && n < names.size(); n++) names[n] = PyTuple_GetItem(of_names, n);
        for (size_t n = 0; n < types.size(); n++) types[n] = PyTuple_GetItem(of_types, n);
    }
    bool is_plain_tensor(Object* object) const {
        Object* const type = type_of(object);
        return type == types[PARAMETER] || type == types[TENSOR];
    }
};

// What a state holds, by name; null where it does not. The keys are mostly Python's own strings and need not be compared.
std::array<Object*, NUM_NAMES> entries(Object* state, const Python& python) {
    std::array<Object*, NUM_NAMES> found{};
    Object *key = nullptr, *value = nullptr;
    for (ssize_t at = 0; PyDict_Next(state, &at, &key, &value);) {
        size_t name = 0;
        while (name < NUM_NAMES && python.names[name] != key) name++;
        if (name == NUM_NAMES && type_of(key) == python.types[STRING])
            for (name = 0; name < NUM_NAMES && PyUnicode_CompareWithASCIIString(key, NAMES[name]);) name++;
        if (name < NUM_NAMES) found[name] = value;
    }
    return found;
}

// parameter -> its state. The walk mostly lies in the groups' order; where it does not, all are looked through once. Tensors are
// equal as keys if they are one object, and their hash, a function in Python, is not asked for.
struct States {
    Object* const dict;
    ssize_t* const cursor;
    std::unordered_map<Object*, Object*> index{};

    Object* of(Object* owner) {
        ssize_t next = *cursor;
        Object *key = nullptr, *state = nullptr;
        if (PyDict_Next(dict, &next, &key, &state) && key == owner) {
            *cursor = next;
            return state;
        }
        if (index.empty())
            for (ssize_t at = 0; PyDict_Next(dict, &at, &key, &state);) index.emplace(key, state);
        const auto found = index.find(owner);
        return found == index.end() ? nullptr : found->second;
    }
};

// Words of Python's object of a tensor: the third is the at::Tensor itself, a pointer to a c10::TensorImpl; native.py looks
// whether it is.
constexpr size_t TENSOR_WORD = 2;

TensorImpl* impl_of(Object* tensor) { return static_cast<TensorImpl**>(tensor)[TENSOR_WORD]; }

// Null if there is none.
TensorImpl* grad_of(TensorImpl* impl) {
    c10::AutogradMetaInterface* const meta = impl->autograd_meta();
    if (!meta) return nullptr;
    TensorImpl* const grad = *reinterpret_cast<TensorImpl* const*>(&std::as_const(*meta).grad());  // at::Tensor is its pointer
    return grad->key_set().empty() ? nullptr : grad;  // the undefined tensor
}

// What a kernel may read through a pointer: no view that is negated or conjugated lazily, no wrapper, nothing that dispatches to
// Python.
bool is_dense_kind(const TensorImpl* impl, bool& is_on_cuda) {
    static const uint64_t beside = c10::DispatchKeySet({DispatchKey::ADInplaceOrView}).raw_repr();
    static const uint64_t plain[] = {
        beside | c10::DispatchKeySet({DispatchKey::CPU, DispatchKey::AutogradCPU, DispatchKey::AutocastCPU}).raw_repr(),
        beside | c10::DispatchKeySet({DispatchKey::CUDA, DispatchKey::AutogradCUDA, DispatchKey::AutocastCUDA}).raw_repr()};
    const c10::DispatchKeySet keys = impl->key_set();
    is_on_cuda = keys.has(DispatchKey::CUDA);
    return (is_on_cuda || keys.has(DispatchKey::CPU)) && !(keys.raw_repr() & ~plain[is_on_cuda]);
}

// A tensor for as long as it is looked at.
struct View {
    enum Dtype { OTHER, FP32, BF16, INT16 };
    TensorImpl* impl = nullptr;
    int64_t numel = 0;
    c10::IntArrayRef sizes, strides;
    Dtype dtype = OTHER;
    bool is_on_cuda = false, is_ordinary = false;
    int32_t device_index = -1;
    void* data = nullptr;

    View(Object* tensor, const Python& python) : View(tensor && python.is_plain_tensor(tensor) ? impl_of(tensor) : nullptr) {}
    explicit View(TensorImpl* of) : impl(of) {
        if (!impl || !is_dense_kind(impl, is_on_cuda) || impl->has_symbolic_sizes_strides() || !impl->has_storage()) return;
        const caffe2::TypeMeta type = impl->dtype();
        dtype = type == caffe2::TypeMeta::Make<float>()         ? FP32
                : type == caffe2::TypeMeta::Make<c10::BFloat16>() ? BF16
                : type == caffe2::TypeMeta::Make<int16_t>()       ? INT16
                                                                  : OTHER;
        if (dtype == OTHER) return;
        numel = impl->numel(), sizes = impl->sizes(), strides = impl->strides();
        if (is_on_cuda) device_index = impl->device().index();
        data = impl->mutable_data();  // copies memory that is shared until it is written to
        is_ordinary = data || numel == 0;
    }

    bool is_like(const View& other) const {
        if (!is_ordinary || sizes != other.sizes || is_on_cuda != other.is_on_cuda || device_index != other.device_index) return false;
        for (size_t d = 0; d < sizes.size(); d++)
            if (strides[d] != other.strides[d] && sizes[d] > 1) return false;
        return true;
    }
    // Whether the elements fill a piece of memory, in any order of dimensions.
    bool is_dense() const {
        const int64_t dim = static_cast<int64_t>(sizes.size());
        int64_t filled = 1;
        for (int64_t d = dim - 1; d >= 0 && (sizes[d] == 1 || strides[d] == filled); d--) filled *= sizes[d];
        if (filled == numel || numel == 0) return true;
        filled = 1;
        for (int64_t rounds = 0; rounds < dim && filled < numel; rounds++)
            for (int64_t d = 0; d < dim; d++)
                if (sizes[d] > 1 && strides[d] == filled) {
                    filled *= sizes[d];
                    break;
                }
        return filled == numel;
    }
};

bool is_float(const View& view) { return view.dtype == View::FP32 || view.dtype == View::BF16; }

void append(Object* list, ssize_t number) {
    Object* const object = PyLong_FromSsize_t(number);
    PyList_Append(list, object);
    Py_DecRef(object);
}

// As torch's own operators that write: autograd then refuses to go back through what was computed from the older values.
void count_write(TensorImpl* impl) {
    if (impl && impl->version_counter().enabled()) impl->bump_version();  // tensors of inference mode have none
}

// Where a parameter's objects were in the last step. Thousands of them do not fit the cache, and each is behind a pointer in
// another: memory is waited for some thirty times in a row. Asking for all of them some parameters ahead overlaps the waits.
// The addresses are only prefetched, which is harmless wherever they point.
struct Stops {
    static constexpr size_t MOST_TENSORS = 5;
    struct Stop {
        const char *object = nullptr, *impl = nullptr, *storage = nullptr, *version = nullptr;
    };
    std::array<Stop, MOST_TENSORS> tensors{};
    const char *state = nullptr, *keys = nullptr, *autograd = nullptr, *count = nullptr;

    // The words read here are of c10::TensorImpl (its storage, autograd data and version) and PyDictObject (its keys); in another
    // version of theirs they would be other words of the same objects, and the prefetch useless.
    static const char* word(const void* of, size_t index) { return static_cast<const char* const*>(of)[index]; }
    void note(size_t which, Object* object, TensorImpl* impl) {
        tensors[which] = {static_cast<const char*>(object), reinterpret_cast<const char*>(impl), word(impl, 2), word(impl, 5)};
        if (which == 0) autograd = word(impl, 3);
    }
    void note(Object* dict, const void* counted) {
        state = static_cast<const char*>(dict);
        keys = word(dict, 4);
        count = static_cast<const char*>(counted);
    }
    // The lines of so many bytes. GCC takes a function that does nothing but prefetch to be pure, and leaves its calls out:
    // hence inlined.
    __attribute__((always_inline)) static void prefetch(const char* from, int bytes) {
        for (int at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
        __builtin_prefetch(from + bytes - 1);
    }
    __attribute__((always_inline)) static void prefetch(const Stop& stop) {
        prefetch(stop.object, 32);
        prefetch(stop.impl, 208);
        prefetch(stop.storage, 80);
    }
    __attribute__((always_inline)) void prefetch_gradient() const {
        for (size_t which : {0, 1}) prefetch(tensors[which]);
        prefetch(autograd, 80);
    }
    __attribute__((always_inline)) void prefetch() const {
        for (const Stop& stop : tensors) {
            prefetch(stop);
            prefetch(stop.version, 24);
        }
        prefetch(state, 48);
        prefetch(keys, 128);
        prefetch(autograd, 80);
        prefetch(count, 4);
    }
};

}  // namespace

// Of one group of one optimizer, which releases it.
struct Trail {
    static constexpr ssize_t AHEAD = 4;
    std::vector<Stops> stops;
    std::vector<Object*> owners;  // as the group last named them
    bool has_repeats = false;

    void follow(Object* params) {
        std::vector<Object*> named(PyList_Size(params));
        for (size_t i = 0; i < named.size(); i++) named[i] = PyList_GetItem(params, i);
        if (named == owners) return;
        owners = std::move(named);
        stops.assign(owners.size(), {});
        has_repeats = std::unordered_set<Object*>(owners.begin(), owners.end()).size() < owners.size();
    }
};

namespace {

// Of each parameter, in this order; null where its format has no use for one.
enum Written { PARAM, FIRST, SECOND, MAXIMUM, EXTRA, COUNT, GRADIENT, PER_PARAM };

// What is gathered, with what is torch's of it: the others see Gathered.
struct Held : Gathered {
    double step = 0;
    std::vector<TensorImpl*> impls;  // PER_PARAM of each parameter; gradients alone where they are measured
    std::vector<double> sums;        // of squares, if they were asked for
    const char* problem = nullptr;

    // Gives the newest parameter its step count, and all that its step writes to another version.
    void count(bool zero_grad) const {
        TensorImpl* const* const of = impls.data() + impls.size() - PER_PARAM;
        *static_cast<float*>(of[COUNT]->mutable_data()) = static_cast<float>(step);
        for (size_t n = 0; n < (zero_grad ? PER_PARAM : GRADIENT); n++) count_write(of[n]);
    }

    // Does `work` to the tensors from the `first` on: without the GIL where it takes longer than Python's threads wait for each
    // other anyway. What is read and written is held then, and stays though a tensor is given other memory.
    template <class Work>
    void with_memory(size_t first, size_t per_param, Work work) {
        int64_t total = 0;
        for (size_t t = first; t < numels.size(); t++) total += numels[t];
        if (total < LONG) {
            problem = work();
            return;
        }
        std::vector<c10::Storage> memory;
        for (size_t n = first * per_param; n < impls.size(); n++)
            if (impls[n]) memory.push_back(impls[n]->storage());
        void* const thread = PyEval_SaveThread();
        problem = work();
        PyEval_RestoreThread(thread);
    }
    static constexpr int64_t LONG = 1 << 21;  // elements
};

// Adds a parameter; false if it is not ordinary.
bool add(Held& to, Object* owner, TensorImpl* owned_grad, Object* state, bool is_amsgrad, const Python& python, Stops& stops) {
    if (!state) return false;
    const auto [step, exp_avg, exp_avg_sq, maximum, master, low] = entries(state, python);
    const View count(step, python);
    if (!count.is_ordinary || count.dtype != View::FP32 || count.numel != 1 || count.is_on_cuda) return false;
    if (*static_cast<const float*>(count.data) + 1.0 != to.step) return false;
    const View param(master ? master : owner, python), grad(owned_grad);
    const View m(exp_avg, python), v(exp_avg_sq, python);
    const View extra(master ? owner : low, python), peak(is_amsgrad ? maximum : nullptr, python);
    const bool is_known = is_float(param) && is_float(grad) && is_float(m) && v.dtype == m.dtype &&
                          (!master || (param.dtype == View::FP32 && extra.dtype == View::BF16)) &&
                          (!low || (param.dtype == View::BF16 && extra.dtype == View::INT16)) &&
                          (!is_amsgrad || peak.dtype == View::FP32);
    const bool is_alike = param.is_ordinary && grad.is_like(param) && m.is_like(param) && v.is_like(param) &&
                          (!(master || low) || extra.is_like(param)) && (!is_amsgrad || peak.is_like(param));
    if (param.is_on_cuda != to.is_on_cuda || !is_known || !is_alike || !param.is_dense()) return false;
    const Param format = master ? Param::fp32_copied : low ? Param::split16 : param.dtype == View::BF16 ? Param::bf16 : Param::fp32;
    const Layout layout{format, grad.dtype == View::BF16 ? Grad::bf16 : Grad::fp32, m.dtype == View::BF16 ? State::bf16 : State::fp32};
    if (to.streams.empty()) {
        to.layout = layout;
        to.device_index = param.device_index;
    } else if (!(layout == to.layout) || to.device_index != param.device_index) {
        return false;
    }
    to.streams.push_back({param.data, extra.data, grad.data, m.data, v.data, static_cast<float*>(peak.data), 0, 0});
    to.numels.push_back(param.numel);
    for (TensorImpl* impl : {param.impl, m.impl, v.impl, peak.impl, extra.impl, count.impl, grad.impl}) to.impls.push_back(impl);
    stops.note(0, owner, impl_of(owner));
    stops.note(1, owned_grad, owned_grad);
    stops.note(2, exp_avg, m.impl);
    stops.note(3, exp_avg_sq, v.impl);
    stops.note(4, step, count.impl);
    stops.note(state, count.data);
    return true;
}

constexpr ssize_t BLOCK = 16;  // tensors: enough that two threads seldom meet in a cache line
constexpr ssize_t FEW = 256;   // tensors that are not worth a second thread

// Runs `gather` on this thread, which has the GIL, and `behind` beside it on another, if torch has one to give.
template <class Gather, class Behind>
void side_by_side(Gather gather, Behind behind) {
    if (is_forked()) {
        gather();  // torch's threads were left in the parent
        return;
    }
    struct Both {
        Gather& gather;
        Behind& behind;
        std::thread::id caller;
    } both{gather, behind, std::this_thread::get_id()};
    torch_parallel_for(
        0, 2, 1,
        [](int64_t, int64_t, void* given) {
            const Both& both = *static_cast<Both*>(given);
            if (std::this_thread::get_id() == both.caller) both.gather();
            else both.behind();
        },
        &both);
}

void set_keys(Held& of, uint64_t seed, uint64_t first) {
    if (of.layout.state != State::bf16) return;
    for (size_t t = 0; t < of.streams.size(); t++) {
        const uint64_t ordinal = first + static_cast<uint64_t>(of.positions[t]), step = static_cast<uint64_t>(of.step);
        uint64_t z = seed * 0x9e3779b97f4a7c15u + step * 0xd1b54a32d192ed03u + ordinal * 0x8cb92ba72f3d8dd7u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        of.streams[t].key = static_cast<uint32_t>(z ^ (z >> 31));
    }
}

}  // namespace

// What outlives a fork is the calling thread alone.
bool is_forked() {
    static const pid_t loaded_in = getpid();
    return getpid() != loaded_in;
}
[[maybe_unused]] static const bool is_forked_when_loaded = is_forked();

// `tensor` is torch's handle of one, the address of an at::Tensor.
void count_write_of(const void* tensor) { count_write(*static_cast<TensorImpl* const*>(tensor)); }

// Whether this process has what gathering needs.
EXPORT int thawline_gathers() { return PyObject_Type && PyDict_Next && PyList_GetItem && PyEval_SaveThread; }

EXPORT Trail* thawline_new_trail() { return new Trail; }
EXPORT void thawline_release_trail(Trail* trail) { delete trail; }
// Before the gathering of a step; returns whether a parameter is named twice.
EXPORT int thawline_follow(Trail* trail, Object* params) {
    trail->follow(params);
    return trail->has_repeats;
}

// Sums the squares of the gradients of the parameters at `positions`, None for all, that are on the kind of device asked for;
// appends the positions of what is not ordinary to `rest`. `trail` follows `params`. Null: out of memory.
EXPORT Gathered* thawline_measure(Object* params, Object* positions, Object* rest, Object* types, bool is_on_cuda, Trail* trail) try {
    auto to = std::make_unique<Held>();
    const Python python(nullptr, types);
    const bool takes_all = positions == python.types[NONE];
    const ssize_t count = PyList_Size(takes_all ? params : positions);
    for (ssize_t n = 0; n < count; n++) {
        if (takes_all && n + Trail::AHEAD < count) trail->stops[n + Trail::AHEAD].prefetch_gradient();
        const ssize_t i = takes_all ? n : PyLong_AsSsize_t(PyList_GetItem(positions, n));
        Object* const owner = PyList_GetItem(params, i);
        const View param(owner, python), grad(param.impl ? grad_of(param.impl) : nullptr);
        if (param.impl && !grad.impl) continue;
        const bool is_known = is_float(param) && is_float(grad) && grad.is_like(param) && param.is_dense() && param.is_on_cuda == is_on_cuda;
        const Grad format = grad.dtype == View::BF16 ? Grad::bf16 : Grad::fp32;
        const bool is_first = to->streams.empty();
        if (is_known && (is_first || (to->layout.grad == format && to->device_index == grad.device_index))) {
            if (is_first) to->layout.grad = format, to->device_index = grad.device_index;
            to->streams.push_back({nullptr, nullptr, grad.data, nullptr, nullptr, nullptr, 0, 0});
            to->numels.push_back(grad.numel);
            to->impls.push_back(grad.impl);
        } else {
            append(rest, i);
        }
    }
    size_t num_sums = 0;
    for (int64_t numel : to->numels) num_sums += (numel + NORM_CHUNK - 1) / NORM_CHUNK;
    to->sums.resize(num_sums);
    to->with_memory(0, 1, [&] { return thawline_sums_of_squares(to.get(), to->sums.data()); });
    return to.release();
} catch (const std::exception&) {
    return nullptr;
}

// Steps and counts the parameters at `positions`, None for all, that are on the kind of device asked for and whose count is one
// less than `step`, the first of them while others are gathered; appends the positions of what is not ordinary to `rest`.
// `cursor` walks `states` from group to group. `trail` follows `params`. Null: out of memory.
EXPORT Gathered* thawline_take(Object* params, Object* positions, Object* states, double step, bool is_amsgrad, Object* rest, Object* names,
                               Object* types, ssize_t* cursor, bool is_on_cuda, Trail* trail, const Ahead* ahead) {
    Held* const to = new Held;
    to->is_on_cuda = is_on_cuda;
    to->step = step;
    const Python python(names, types);
    States states_of{states, cursor};
    const bool takes_all = positions == python.types[NONE];
    const ssize_t count = PyList_Size(takes_all ? params : positions);
    to->positions.reserve(count);
    to->streams.reserve(count);  // so that they stay where they are while another thread reads them
    to->numels.reserve(count);
    to->impls.reserve(count * PER_PARAM);
    std::atomic<int64_t> ready{0};
    std::atomic<bool> is_complete{false};
    bool is_out_of_memory = false;  // an exception must not keep the other thread waiting
    auto gather_one = [&](ssize_t n) {
        if (takes_all && n + Trail::AHEAD < count) trail->stops[n + Trail::AHEAD].prefetch();
        const ssize_t i = takes_all ? n : PyLong_AsSsize_t(PyList_GetItem(positions, n));
        Object* const owner = PyList_GetItem(params, i);
        if (!owner) return PyErr_Clear();
        const bool is_plain = python.is_plain_tensor(owner);
        Object* const state = states_of.of(owner);
        TensorImpl* const grad = is_plain ? grad_of(impl_of(owner)) : nullptr;
        if (is_plain && !grad) return;
        if (is_plain && add(*to, owner, grad, state, is_amsgrad, python, trail->stops[i])) {
            to->positions.push_back(i);
            to->count(ahead->options.zeroes_grad);
        } else {
            append(rest, i);
        }
    };
    auto gather_all = [&] {
        try {
            for (ssize_t n = 0; n < count; n++) {
                gather_one(n);
                if (n % BLOCK == 0) ready.store(to->streams.size(), std::memory_order_release);
            }
        } catch (const std::exception&) {
            is_out_of_memory = true;
        }
        is_complete.store(true, std::memory_order_release);
    };
    if (ahead->behind && count > FEW)
        side_by_side(gather_all, [&] { ahead->behind(*to, ready, is_complete, ahead->scalars, ahead->options); });
    else gather_all();
    if (is_out_of_memory) return delete to, nullptr;
    set_keys(*to, ahead->seed, ahead->first);
    const auto step_rest = [&] { return thawline_step(to, &ahead->scalars, ahead->options.is_accurate, ahead->options.zeroes_grad); };
    if (to->num_stepped < static_cast<int64_t>(to->streams.size())) to->with_memory(to->num_stepped, PER_PARAM, step_rest);
    return to;
}

// Of what was gathered, numbers alone: its pointers may lead nowhere by now.
EXPORT int64_t thawline_gathered(const Gathered* from) { return static_cast<int64_t>(from->numels.size()); }
EXPORT int64_t thawline_num_sums(const Gathered* from) { return static_cast<int64_t>(static_cast<const Held*>(from)->sums.size()); }
EXPORT const double* thawline_sums(const Gathered* from) { return static_cast<const Held*>(from)->sums.data(); }
EXPORT const char* thawline_problem(const Gathered* from) { return static_cast<const Held*>(from)->problem; }
EXPORT void thawline_release(Gathered* from) { delete static_cast<Held*>(from); }
