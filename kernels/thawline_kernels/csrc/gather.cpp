// Reads a parameter group from Python's own objects, without making a Python object for each pointer, stride and size.
//
// Owns what makes a parameter ordinary: a plain dense fp32 or bf16 tensor whose gradient and state have its device, shape and
// strides, and the device, dtypes and step counter of the group's first such. All others are named in `rest`, and batches.py
// takes them, or refuses them with a message. Nothing that counts is kept from step to step, because DeepSpeed and FSDP swap
// tensors there; only addresses to prefetch are, which may be stale.
//
// Called through ctypes.PyDLL, which holds the GIL. Of Python only functions of its stable ABI are used, declared here, so that
// none of its headers is needed; of torch those of its C shim.
#include "gather.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <sys/types.h>

#include <array>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define WEAK __attribute__((weak))

using Object = void;  // a PyObject

extern "C" {
WEAK Object* PyObject_GetAttr(Object*, Object*);
WEAK Object* PyObject_Type(Object*);
WEAK int PyObject_IsTrue(Object*);
WEAK Object* PyObject_CallFunctionObjArgs(Object*, ...);
WEAK int PyDict_Next(Object*, ssize_t*, Object**, Object**);
WEAK Object* PyDict_GetItem(Object*, Object*);
WEAK int PyDict_SetItem(Object*, Object*, Object*);
WEAK Object* PyList_GetItem(Object*, ssize_t);
WEAK ssize_t PyList_Size(Object*);
WEAK int PyList_Append(Object*, Object*);
WEAK Object* PyTuple_GetItem(Object*, ssize_t);
WEAK Object* PyLong_FromSsize_t(ssize_t);
WEAK ssize_t PyLong_AsSsize_t(Object*);
WEAK void Py_IncRef(Object*);
WEAK void Py_DecRef(Object*);
WEAK void PyErr_Clear();
}

namespace {

const int32_t FP32 = aoti_torch_dtype_float32(), BF16 = aoti_torch_dtype_bfloat16(), INT16 = aoti_torch_dtype_int16();
const int32_t CPU = aoti_torch_device_type_cpu(), CUDA = aoti_torch_device_type_cuda(), STRIDED = aoti_torch_layout_strided();

// Python's own, in the order of native.py.
enum Name { GRAD, STEP, EXP_AVG, EXP_AVG_SQ, PEAK, MASTER, LOW, IS_NEG, NUM_NAMES };
enum Type { TENSOR, PARAMETER, NONE, NUM_TYPES };
struct Python {
    std::array<Object*, NUM_NAMES> names;
    std::array<Object*, NUM_TYPES> types;

    Python(Object* of_names, Object* of_types) {
        for (size_t n = 0; n < names.size(); n++) names[n] = PyTuple_GetItem(of_names, n);
        for (size_t n = 0; n < types.size(); n++) types[n] = PyTuple_GetItem(of_types, n);
    }
};

// What a state holds, by name; null where it does not. The keys are mostly Python's own strings and need not be hashed.
std::array<Object*, NUM_NAMES> entries(Object* state, const Python& python) {
    std::array<Object*, NUM_NAMES> found{};
    Object *key = nullptr, *value = nullptr;
    bool is_known = true;
    for (ssize_t at = 0; is_known && PyDict_Next(state, &at, &key, &value);) {
        size_t name = STEP;
        while (name <= LOW && python.names[name] != key) name++;
        is_known = name <= LOW;
        if (is_known) found[name] = value;
    }
    for (size_t name = STEP; !is_known && name <= LOW; name++) found[name] = PyDict_GetItem(state, python.names[name]);
    return found;
}

// Words of Python's object of a tensor: the third is the at::Tensor itself, a pointer to a c10::TensorImpl; native.py looks
// whether it is. A handle of torch's shim is the address of an at::Tensor, so none has to be made and counted for this.
constexpr size_t TENSOR_WORD = 2;

// A tensor of Python's for as long as it is looked at.
struct View {
    int64_t dim = 0, numel = 1, *sizes = nullptr, *strides = nullptr;
    int32_t dtype = -1, device_type = -1, device_index = -1;
    void* data = nullptr;
    bool is_ordinary = false;

    View(Object* tensor, const Python& python) {
        Object* type = tensor ? PyObject_Type(tensor) : nullptr;
        const bool is_plain = type && (type == python.types[TENSOR] || type == python.types[PARAMETER]);
        if (type) Py_DecRef(type);  // its tensors keep it alive
        if (!is_plain) return;
        const AtenTensorHandle handle = reinterpret_cast<AtenTensorHandle>(static_cast<void**>(tensor) + TENSOR_WORD);
        int32_t layout = -1;
        is_ordinary = !aoti_torch_get_layout(handle, &layout) && layout == STRIDED &&
                      !aoti_torch_get_device_type(handle, &device_type) && (device_type == CPU || device_type == CUDA) &&
                      (device_type == CPU || !aoti_torch_get_device_index(handle, &device_index)) &&
                      !aoti_torch_get_dtype(handle, &dtype) && !aoti_torch_get_dim(handle, &dim) &&
                      !aoti_torch_get_sizes(handle, &sizes) && !aoti_torch_get_strides(handle, &strides) &&
                      !aoti_torch_get_data_ptr(handle, &data);
        if (!is_ordinary) return;
        for (int64_t d = 0; d < dim; d++) numel *= sizes[d];
        is_ordinary = data || numel == 0;
    }

    bool is_like(const View& other) const {
        bool is_like = is_ordinary && dim == other.dim && device_type == other.device_type && device_index == other.device_index;
        for (int64_t d = 0; is_like && d < dim; d++)
            is_like = sizes[d] == other.sizes[d] && (strides[d] == other.strides[d] || sizes[d] < 2);
        return is_like;
    }
    // Whether the elements fill a piece of memory, in any order of dimensions.
    bool is_dense() const {
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

// A gradient may be the lazily negated imaginary part of a complex tensor. Its strides tell, but of one element.
bool may_be_negated(const View& grad, Object* object, const Python& python) {
    if (grad.numel != 1) return false;
    Object* const is_neg = PyObject_GetAttr(object, python.names[IS_NEG]);
    Object* const answer = is_neg ? PyObject_CallFunctionObjArgs(is_neg, nullptr) : nullptr;
    const bool may_be = !answer || PyObject_IsTrue(answer) != 0;
    for (Object* used : {is_neg, answer})
        if (used) Py_DecRef(used);
    if (!answer) PyErr_Clear();
    return may_be;
}

// Where a parameter's objects were in the last step. Thousands of them do not fit the cache, and each is behind a pointer in
// another: memory is waited for some thirty times in a row. Asking for all of them some parameters ahead overlaps the waits.
// The addresses are only prefetched, which is harmless wherever they point.
struct Trail {
    static constexpr ssize_t AHEAD = 4;
    static constexpr size_t MOST_TENSORS = 4;
    struct Stop {
        const char *object = nullptr, *impl = nullptr, *storage = nullptr;
    };
    std::array<Stop, MOST_TENSORS> tensors{};
    const char *state = nullptr, *keys = nullptr, *autograd = nullptr;

    // The words read here are of c10::TensorImpl (its storage and autograd data) and PyDictObject (its keys); in another version
    // of theirs they would be other words of the same objects, and the prefetch useless.
    static const char* word(const void* of, size_t index) { return static_cast<const char* const*>(of)[index]; }
    void note(size_t which, Object* object) {
        const char* const impl = word(object, TENSOR_WORD);
        tensors[which] = {static_cast<const char*>(object), impl, word(impl, 2)};
        if (which == 0) autograd = word(impl, 3);
    }
    void note(Object* dict) {
        state = static_cast<const char*>(dict);
        keys = word(dict, 4);
    }
    // The lines of so many bytes. GCC takes a function that does nothing but prefetch to be pure, and leaves its calls out:
    // hence inlined.
    __attribute__((always_inline)) static void prefetch(const char* from, int bytes) {
        for (int at = 0; at < bytes; at += 64) __builtin_prefetch(from + at);
        __builtin_prefetch(from + bytes - 1);
    }
    __attribute__((always_inline)) void prefetch() const {
        for (const Stop& stop : tensors) {
            prefetch(stop.object, 32);
            prefetch(stop.impl, 208);
            prefetch(stop.storage, 80);
        }
        prefetch(state, 48);
        prefetch(keys, 128);
        prefetch(autograd, 80);
    }
};

// By the list of a group's parameters, in its order. Guarded by the GIL, which a call of Python's may give to another thread:
// hence taken out while in use.
std::unordered_map<Object*, std::vector<Trail>> trails_of;

std::vector<Trail> take_trail(Object* params) {
    std::vector<Trail> taken = std::exchange(trails_of[params], {});
    taken.resize(PyList_Size(params));
    return taken;
}

void put_back(Object* params, std::vector<Trail> trail) {
    if (trails_of.size() > 4096) trails_of.clear();  // groups of optimizers that are gone
    trails_of[params] = std::move(trail);
}

// Adds a parameter; false if it is not ordinary.
bool add(Gathered& to, Object* owner, Object* owned_grad, Object* state, Object* counter, Object* counted, const Python& python,
         Trail& trail) {
    if (!state) return false;
    const auto [_, step, exp_avg, exp_avg_sq, maximum, master, low, __] = entries(state, python);
    if (step != counter && (!step || step != counted)) return false;  // the second: named twice in the group
    const View param(master ? master : owner, python), grad(owned_grad, python);
    const View m(exp_avg, python), v(exp_avg_sq, python);
    const View extra(master ? owner : low, python), peak(maximum, python);
    const bool is_known = (param.dtype == FP32 || param.dtype == BF16) && (grad.dtype == FP32 || grad.dtype == BF16) &&
                          (m.dtype == FP32 || m.dtype == BF16) && v.dtype == m.dtype &&
                          (!master || (param.dtype == FP32 && extra.dtype == BF16)) &&
                          (!low || (param.dtype == BF16 && extra.dtype == INT16)) && (!maximum || peak.dtype == FP32);
    const bool is_alike = param.is_ordinary && grad.is_like(param) && m.is_like(param) && v.is_like(param) &&
                          (!(master || low) || extra.is_like(param)) && (!maximum || peak.is_like(param));
    const bool is_here = param.device_type == (to.is_on_cuda ? CUDA : CPU);
    if (!is_here || !is_known || !is_alike || !param.is_dense() || may_be_negated(grad, owned_grad, python))
        return false;
    const Param format = master ? Param::fp32_copied : low ? Param::split16 : param.dtype == BF16 ? Param::bf16 : Param::fp32;
    const Layout layout{format, grad.dtype == BF16 ? Grad::bf16 : Grad::fp32, m.dtype == BF16 ? State::bf16 : State::fp32};
    if (to.streams.empty()) {
        to.layout = layout;
        to.has_peaks = maximum;
        to.device_index = param.device_index;
    } else if (!(layout == to.layout) || to.has_peaks != (maximum != nullptr) || to.device_index != param.device_index) {
        return false;
    }
    to.streams.push_back({param.data, extra.data, grad.data, m.data, v.data, static_cast<float*>(peak.data), 0, 0});
    to.numels.push_back(param.numel);
    trail.note(0, owner);
    trail.note(1, owned_grad);
    trail.note(2, exp_avg);
    trail.note(3, exp_avg_sq);
    trail.note(state);
    return true;
}

void give_count(Object* state, Object* counted, Object* name) {
    if (PyDict_SetItem(state, name, counted)) PyErr_Clear();
}

constexpr ssize_t BLOCK = 16;  // tensors: enough that two threads seldom meet in a cache line
constexpr ssize_t FEW = 256;   // tensors that are not worth a second thread

// Runs `gather` on this thread, which has the GIL, and `behind` beside it on another, if torch has one to give.
template <class Gather, class Behind>
void side_by_side(Gather gather, Behind behind) {
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

}  // namespace

// Whether this torch and this process have what gathering needs.
EXPORT int thawline_gathers() { return PyObject_GetAttr && PyDict_Next && PyList_GetItem; }

// Takes the parameters at `positions`, None for all, that are on the kind of device asked for; appends the positions of what is
// not ordinary to `rest`. `cursor` walks `states` (parameter -> its state) from group to group: it mostly lies in the groups'
// order, which saves the hash of each parameter, a call of Python's. With `step_behind` the first of them are stepped meanwhile,
// and with `counted`, if it is not None, every state is given that count.
EXPORT Gathered* thawline_gather(Object* params, Object* positions, Object* states, Object* counter,
                                 Object* rest, Object* names, Object* types, ssize_t* cursor, bool is_on_cuda, Object* counted,
                                 StepBehind step_behind, const Scalars* scalars, bool is_accurate, bool zero_grad) {
    Gathered* const to = new Gathered;
    to->is_on_cuda = is_on_cuda;
    const Python python(names, types);
    Object* const none = python.types[NONE];
    const bool takes_all = positions == none;
    const ssize_t count = PyList_Size(takes_all ? params : positions);
    for (std::vector<void*>* list : {&to->kept, &to->states}) list->reserve(count);
    to->positions.reserve(count);
    to->streams.reserve(count);  // so that they stay where they are while another thread reads them
    to->numels.reserve(count);
    std::vector<Trail> trail = take_trail(params);
    std::atomic<int64_t> ready{0};
    std::atomic<bool> is_complete{false};
    auto gather_one = [&](ssize_t n) {
        if (takes_all && n + Trail::AHEAD < count) trail[n + Trail::AHEAD].prefetch();
        const ssize_t i = takes_all ? n : PyLong_AsSsize_t(PyList_GetItem(positions, n));
        Object *const owner = PyList_GetItem(params, i), *key = nullptr, *state = nullptr;
        ssize_t next = *cursor;
        if (PyDict_Next(states, &next, &key, &state) && key == owner) *cursor = next;
        else state = nullptr;
        Object* const grad = PyObject_GetAttr(owner, python.names[GRAD]);
        if (!grad) PyErr_Clear();
        if (grad != none) {
            if (!state) state = PyDict_GetItem(states, owner);
            if (grad && add(*to, owner, grad, state, counter, counted, python, trail[i])) {
                to->positions.push_back(i);
                to->kept.push_back(grad);
                to->states.push_back(state);
                Py_IncRef(grad);
                Py_IncRef(state);
                if (counted != none) give_count(state, counted, python.names[STEP]);
            } else {
                Object* const position = PyLong_FromSsize_t(i);
                PyList_Append(rest, position);
                Py_DecRef(position);
            }
        }
        if (grad) Py_DecRef(grad);
    };
    auto gather_all = [&] {
        for (ssize_t n = 0; n < count; n++) {
            gather_one(n);
            if (n % BLOCK == 0) ready.store(to->streams.size(), std::memory_order_release);
        }
        is_complete.store(true, std::memory_order_release);
    };
    if (step_behind && count > FEW)
        side_by_side(gather_all, [&] { step_behind(*to, ready, is_complete, *scalars, {is_accurate, zero_grad}); });
    else gather_all();
    put_back(params, std::move(trail));
    return to;
}

EXPORT int64_t thawline_gathered(const Gathered* from) { return static_cast<int64_t>(from->streams.size()); }
EXPORT int thawline_gathered_moments_are_bf16(const Gathered* from) { return from->layout.state == State::bf16; }

// Gives every state the new step count.
EXPORT void thawline_count(Gathered* from, Object* counted, Object* names) {
    for (void* state : from->states) give_count(state, counted, PyTuple_GetItem(names, STEP));
}

EXPORT void thawline_release(Gathered* from) {
    for (const std::vector<void*>* list : {&from->kept, &from->states})
        for (void* object : *list) Py_DecRef(object);
    delete from;
}

EXPORT int64_t thawline_num_sums(const Gathered* from) {
    int64_t count = 0;
    for (int64_t numel : from->numels) count += (numel + NORM_CHUNK - 1) / NORM_CHUNK;
    return count;
}

// Keys of the random bits for second moments in bf16: formats.random_key of seed, step and the parameter's number.
EXPORT void thawline_set_keys(Gathered* from, uint64_t seed, uint64_t step, uint64_t first) {
    for (size_t t = 0; t < from->streams.size(); t++) {
        const uint64_t ordinal = first + static_cast<uint64_t>(from->positions[t]);
        uint64_t z = seed * 0x9e3779b97f4a7c15u + step * 0xd1b54a32d192ed03u + ordinal * 0x8cb92ba72f3d8dd7u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        from->streams[t].key = static_cast<uint32_t>(z ^ (z >> 31));
    }
}
