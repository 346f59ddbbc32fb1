/* The Python type: one Vcpu is the native half of one virtual CPU. See vcpu.h. */
#include "globals.h"
#include <pthread.h>
#include <structmember.h>
#include <time.h>

Api api;
Layout layout;
static int instructions[INSN_COUNT];

int64_t monotonic_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static Vcpu *first; /* all that have an engine */
static pthread_mutex_t engines = PTHREAD_MUTEX_INITIALIZER;
Vcpu *vcpu_of(const void *cpu) {
    pthread_mutex_lock(&engines);
    Vcpu *v = first;
    while (v && v->cpu != cpu) v = v->next;
    pthread_mutex_unlock(&engines);
    return v;
}
static void remember(Vcpu *v) {
    pthread_mutex_lock(&engines);
    v->next = first;
    first = v;
    pthread_mutex_unlock(&engines);
}
static void forget(Vcpu *v) {
    pthread_mutex_lock(&engines);
    Vcpu **link = &first;
    while (*link && *link != v) link = &(*link)->next;
    if (*link) *link = v->next;
    pthread_mutex_unlock(&engines);
}

/* End the run at the next block boundary. Not by emu_stop, which makes Unicorn skip the hooks of every IN and OUT that
 * the current block still holds. */
static void end_slice(Vcpu *v) {
    vcpu_withhold(v, 0);
    v->end -= v->left;
    v->left = 0;
    v->deadline = 0;
}

/* An exception of a callback is kept, the run stopped, and raised by run(). Only the first counts. */
static void fail(Vcpu *v) {
    if (v->error_type) PyErr_Clear();
    else PyErr_Fetch(&v->error_type, &v->error_value, &v->error_trace);
    v->why = EXIT_STOPPED;
    end_slice(v);
}
/* Guest code of several vCPUs executes at once, each in a thread of its own; Python, theirs and everybody's, is run by
 * whoever has the house lock, from the first to the last line of an exit. */
static void house(Vcpu *v, const char *method) {
    PyObject *done = PyObject_CallMethod(v->house, method, NULL);
    if (!done) fail(v);
    Py_XDECREF(done);
}
static void go_out(Vcpu *v) {
    if (!v->house || v->house == Py_None) return;
    house(v, "release");
    v->outdoors = PyEval_SaveThread();
}
static void come_in(Vcpu *v) {
    if (!v->outdoors) return;
    PyEval_RestoreThread(v->outdoors);
    v->outdoors = NULL;
    house(v, "acquire"); /* without the GIL while it has to wait */
}

static int64_t call(Vcpu *v, PyObject *function, int count, uint64_t a, uint64_t b, uint64_t c, int64_t otherwise) {
    PyObject *arguments[3] = {NULL, NULL, NULL};
    uint64_t values[3] = {a, b, c};
    for (int i = 0; i < count; i++)
        if (!(arguments[i] = PyLong_FromUnsignedLongLong(values[i]))) {
            fail(v);
            return otherwise;
        }
    uint64_t begin = __builtin_ia32_rdtsc();
    PyObject *result = PyObject_Vectorcall(function, arguments, (size_t)count, NULL);
    v->handler_cycles += __builtin_ia32_rdtsc() - begin;
    for (int i = 0; i < count; i++) Py_DECREF(arguments[i]);
    if (!result) {
        fail(v);
        return otherwise;
    }
    if (result != Py_None) {
        uint64_t value = PyLong_AsUnsignedLongLongMask(result);
        if (PyErr_Occurred()) fail(v);
        else otherwise = (int64_t)value;
    }
    Py_DECREF(result);
    return otherwise;
}
int64_t vcpu_call(Vcpu *v, PyObject *function, int count, uint64_t a, uint64_t b, uint64_t c, int64_t otherwise) {
    come_in(v);
    otherwise = call(v, function, count, a, b, c, otherwise);
    go_out(v);
    return otherwise;
}

void vcpu_drive(Vcpu *v, bool pending) {
    enum { VIRQ = 0x100 };
    if (!pending) CPU32(v, layout.interrupt_request) &= ~VIRQ;
    else {
        api.cpu_interrupt_handler(v->cpu, VIRQ);
        *(volatile uint16_t *)(v->cpu + layout.icount_high) = 0xffff;
    }
}

/* ---- methods */
/* Let the guest run until something ends it; which is in v->why. Returns Unicorn's error. */
static int run_guest(Vcpu *v) {
    int error = 0;
    bool again;
    do {
        if (v->debug.active && debug_enter(v)) return 0;
        CPU32(v, layout.halted) = 0;
        go_out(v);
        error = api.emu_start(v->uc, ENV64(v, RIP), 0, 0, 0);
        come_in(v);
        again = v->debug.active && debug_left(v);
    } while (again && !error);
    return error;
}
static PyObject *go(Vcpu *v, int why) {
    v->why = why;
    v->running = 1;
    Py_INCREF(v); /* a callback may drop the last reference while we are on its stack */
    uint64_t cycles = __builtin_ia32_rdtsc();
    int64_t begin = monotonic_ns();
    int error = run_guest(v);
    v->run_ns += (uint64_t)(monotonic_ns() - begin);
    v->run_cycles += __builtin_ia32_rdtsc() - cycles;
    v->running = 0;
    why = v->why;
    if (why == EXIT_STOPPED && CPU32(v, layout.halted)) v->halted = true;
    if (v->error_type) {
        PyErr_Restore(v->error_type, v->error_value, v->error_trace);
        v->error_type = v->error_value = v->error_trace = NULL;
        why = -1;
    } else if (error) {
        v->error = error;
        why = EXIT_ERROR;
    } else if (why == EXIT_BUDGET && CPU32(v, layout.halted))
        why = EXIT_HALT;
    Py_DECREF(v);
    return why < 0 ? NULL : PyLong_FromLong(why);
}
/* NULL with an exception where the guest cannot run now; EXIT_HALT at once where the last run was stopped in the block of a
 * HLT, which the caller has not been told yet; else None. */
static PyObject *begin(Vcpu *v) {
    if (v->running) return PyErr_Format(PyExc_RuntimeError, "this vCPU is running already");
    if (!v->uc) return PyErr_Format(PyExc_RuntimeError, "this vCPU is closed");
    if (!v->halted) Py_RETURN_NONE;
    v->halted = false;
    return PyLong_FromLong(EXIT_HALT);
}
static PyObject *vcpu_run(Vcpu *v, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "run(budget, deadline)");
    int64_t budget = PyLong_AsLongLong(arguments[0]), units = vcpu_units(v);
    int64_t deadline = arguments[1] == Py_None ? 0 : PyLong_AsLongLong(arguments[1]);
    if (PyErr_Occurred()) return NULL;
    PyObject *halt = begin(v);
    if (halt != Py_None) return halt;
    Py_DECREF(halt);
    v->exact = arguments[1] == Py_None;
    v->deadline = deadline;
    v->left = v->quantum = budget;
    v->end = units + budget;
    v->withheld = 0;
    if (v->debug.active) vcpu_withhold(v, ALL);
    return go(v, EXIT_BUDGET);
}
static PyObject *vcpu_resume(Vcpu *v, PyObject *unused) {
    (void)unused;
    PyObject *halt = begin(v);
    if (halt != Py_None) return halt;
    Py_DECREF(halt);
    debug_resume(v);
    return go(v, v->debug.stopped);
}
static PyObject *vcpu_stop(Vcpu *v, PyObject *unused) {
    (void)unused;
    v->why = EXIT_STOPPED;
    end_slice(v);
    Py_RETURN_NONE;
}
static PyObject *vcpu_kick(Vcpu *v, PyObject *unused) {
    (void)unused;
    end_slice(v);
    Py_RETURN_NONE;
}
static PyObject *vcpu_interrupt(Vcpu *v, PyObject *pending) {
    if (v->uc && !debug_holds_interrupt(v, pending == Py_True)) vcpu_drive(v, pending == Py_True);
    Py_RETURN_NONE;
}
static PyObject *vcpu_window(Vcpu *v, PyObject *const *a, Py_ssize_t count) {
    if (count != 4) return PyErr_Format(PyExc_TypeError, "window(port, buffer, start, out)");
    long port = PyLong_AsLong(a[0]);
    Py_ssize_t start = PyLong_AsSsize_t(a[2]);
    if (PyErr_Occurred() || window_open(v, (int)(port & 0xffff), a[1], start, a[3] == Py_True)) return NULL;
    Py_RETURN_NONE;
}
static PyObject *vcpu_window_position(Vcpu *v, PyObject *port) {
    long number = PyLong_AsLong(port);
    if (PyErr_Occurred()) return NULL;
    int i = v->window_of[number & 0xffff];
    return PyLong_FromSsize_t(i ? v->windows[i].position : 0);
}
static PyObject *vcpu_map_ram(Vcpu *v, PyObject *arguments) {
    unsigned long long base, host, size;
    if (!PyArg_ParseTuple(arguments, "KKK", &base, &size, &host)) return NULL;
    return PyBool_FromLong(memory_map_ram(v, base, size, (uint8_t *)(uintptr_t)host));
}
static PyObject *vcpu_map_io(Vcpu *v, PyObject *arguments) {
    unsigned long long base, size;
    if (!PyArg_ParseTuple(arguments, "KK", &base, &size)) return NULL;
    return PyBool_FromLong(memory_map_io(v, base, size));
}
static PyObject *vcpu_unmap(Vcpu *v, PyObject *arguments) {
    unsigned long long base, size;
    if (!PyArg_ParseTuple(arguments, "KK", &base, &size)) return NULL;
    return PyBool_FromLong(memory_unmap(v, base, size));
}
static PyObject *vcpu_invalidate(Vcpu *v, PyObject *const *a, Py_ssize_t count) {
    if (count != 2) return PyErr_Format(PyExc_TypeError, "invalidate(address, length)");
    uint64_t address = PyLong_AsUnsignedLongLong(a[0]), length = PyLong_AsUnsignedLongLong(a[1]);
    if (PyErr_Occurred()) return NULL;
    for (int i = 0; v->uc && i < v->slot_count; i++) {
        Slot *s = &v->slots[i];
        uint64_t begin = address > s->base ? address : s->base;
        uint64_t end = address + length < s->base + s->size ? address + length : s->base + s->size;
        if (begin < end) memory_invalidate(v, s->host + (begin - s->base), end - begin);
    }
    Py_RETURN_NONE;
}
static PyObject *vcpu_translate(Vcpu *v, PyObject *linear) {
    uint64_t physical, address = PyLong_AsUnsignedLongLong(linear);
    if (PyErr_Occurred()) return NULL;
    if (api.vmem_translate(v->uc, address, 1, &physical)) Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(physical);
}
static PyObject *vcpu_trail(Vcpu *v, PyObject *unused) {
    (void)unused;
    uint64_t first = v->steps > TRAIL ? v->steps - TRAIL : 0;
    PyObject *list = PyList_New(0);
    for (uint64_t i = first; list && i < v->steps; i++) {
        Step *s = &v->trail[i % TRAIL];
        PyObject *row = Py_BuildValue("(iIiKKK)", s->kind, s->address, s->size, s->value, s->rip, s->units);
        if (!row || PyList_Append(list, row)) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}
/* Let go of libunicorn's objects; the caller closes the engine right after. */
static PyObject *vcpu_detach(Vcpu *v, PyObject *unused) {
    (void)unused;
    if (v->running) return PyErr_Format(PyExc_RuntimeError, "this vCPU is running");
    if (v->faststore) faststore_unregister(v->faststore);
    v->faststore = NULL;
    forget(v);
    v->uc = NULL;
    for (int i = 0; i < WINDOWS; i++)
        if (v->windows[i].view.obj) PyBuffer_Release(&v->windows[i].view);
    memset(v->windows, 0, sizeof v->windows);
    Py_RETURN_NONE;
}
static PyObject *vcpu_count(Vcpu *v, PyObject *unused) {
    (void)unused;
    return PyLong_FromLongLong(vcpu_units(v));
}
static PyObject *vcpu_vectors(Vcpu *v, PyObject *unused) {
    (void)unused;
    PyObject *list = PyList_New(256);
    for (int i = 0; list && i < 256; i++) PyList_SET_ITEM(list, i, PyLong_FromUnsignedLongLong(v->vectors[i]));
    return list;
}

/* step(range_begin, range_end, show_interrupts): the next run executes one instruction, and more while it is in the range */
static PyObject *vcpu_step_once(Vcpu *v, PyObject *arguments) {
    unsigned long long begin, end;
    int show;
    if (!PyArg_ParseTuple(arguments, "KKp", &begin, &end, &show)) return NULL;
    debug_step(v, begin, end, show);
    Py_RETURN_NONE;
}
static PyObject *vcpu_forget_step(Vcpu *v, PyObject *unused) {
    (void)unused;
    debug_forget_step(v);
    Py_RETURN_NONE;
}
/* block(): the block in whose middle the vCPU was stopped, as (start, where it goes on, end), or None; enter_block: be there */
static PyObject *vcpu_block(Vcpu *v, PyObject *unused) {
    (void)unused;
    Debug *d = &v->debug;
    if (!d->in_block) Py_RETURN_NONE;
    return Py_BuildValue("(KKK)", d->start, d->at, d->end);
}
static PyObject *vcpu_enter_block(Vcpu *v, PyObject *arguments) {
    unsigned long long start, at, end;
    if (!PyArg_ParseTuple(arguments, "KKK", &start, &at, &end)) return NULL;
    debug_enter_block(v, start, at, end);
    Py_RETURN_NONE;
}
/* breakpoints(sorted list of linear addresses) */
static PyObject *vcpu_breakpoints(Vcpu *v, PyObject *list) {
    if (v->running) return PyErr_Format(PyExc_RuntimeError, "this vCPU is running");
    if (!PyList_Check(list)) return PyErr_Format(PyExc_TypeError, "a list of addresses");
    Py_ssize_t count = PyList_GET_SIZE(list);
    uint64_t *addresses = PyMem_Malloc((size_t)(count ? count : 1) * sizeof *addresses);
    if (!addresses) return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) addresses[i] = PyLong_AsUnsignedLongLong(PyList_GET_ITEM(list, i));
    if (PyErr_Occurred()) {
        PyMem_Free(addresses);
        return NULL;
    }
    debug_set_breakpoints(v, addresses, (int)count);
    Py_RETURN_NONE;
}
/* watchpoints(list of (guest-physical address, length, kinds)) */
static PyObject *vcpu_watchpoints(Vcpu *v, PyObject *list) {
    Watch watches[WATCHES];
    if (v->running) return PyErr_Format(PyExc_RuntimeError, "this vCPU is running");
    Py_ssize_t count = PyList_Check(list) ? PyList_GET_SIZE(list) : WATCHES + 1;
    if (count > WATCHES) return PyErr_Format(PyExc_ValueError, "a list of at most %d", WATCHES);
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long long address, length;
        int kinds;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "KKi", &address, &length, &kinds)) return NULL;
        watches[i] = (Watch){address, length, kinds};
    }
    if (!debug_set_watchpoints(v, watches, (int)count)) return PyErr_Format(PyExc_OSError, "unicorn refused a hook");
    Py_RETURN_NONE;
}

/* Vcpu(uc, cpu, env, tlb, units, callbacks=(port_in, port_out, memory_read, memory_write, acknowledge, window_done, vmexit, hypercall or None)) */
static int vcpu_init(Vcpu *v, PyObject *arguments, PyObject *keywords) {
    unsigned long long uc, cpu, env, tlb;
    long long units;
    (void)keywords;
    if (v->uc) {
        PyErr_SetString(PyExc_RuntimeError, "this vCPU exists already");
        return -1;
    }
    if (!PyArg_ParseTuple(arguments, "KKKKL(OOOOOOOO)", &uc, &cpu, &env, &tlb, &units, &v->port_in, &v->port_out, &v->memory_read,
                          &v->memory_write, &v->acknowledge, &v->window_done, &v->vmexit, &v->hypercall)) {
        v->port_in = v->port_out = v->memory_read = v->memory_write = v->acknowledge = v->window_done = v->vmexit = v->hypercall = NULL;
        return -1;
    }
    Py_INCREF(v->port_in), Py_INCREF(v->port_out), Py_INCREF(v->memory_read), Py_INCREF(v->memory_write);
    Py_INCREF(v->acknowledge), Py_INCREF(v->window_done), Py_INCREF(v->vmexit), Py_INCREF(v->hypercall);
    v->uc = (void *)uc, v->cpu = (void *)cpu, v->env = (void *)env, v->end = units, v->delivering = -1;
    v->icount = (volatile int32_t *)(v->cpu + layout.icount_high - 2);
    remember(v);
    if (!deliver_hooks(v, instructions) || !port_hooks(v, instructions) || !blocks_hook(v)) {
        PyErr_SetString(PyExc_OSError, "unicorn refused a hook");
        return -1;
    }
    if ((v->tlb = (void *)tlb)) v->faststore = faststore_register(v);
    return 0;
}
static int vcpu_traverse(Vcpu *v, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(v));
    Py_VISIT(v->house);
    Py_VISIT(v->port_in); Py_VISIT(v->port_out); Py_VISIT(v->memory_read); Py_VISIT(v->memory_write);
    Py_VISIT(v->acknowledge); Py_VISIT(v->window_done); Py_VISIT(v->vmexit); Py_VISIT(v->hypercall);
    return 0;
}
static int vcpu_clear(Vcpu *v) {
    if (v->running) return 0; /* a suspended greenlet still stands in run(), which holds a reference */
    Py_CLEAR(v->port_in); Py_CLEAR(v->port_out); Py_CLEAR(v->memory_read); Py_CLEAR(v->memory_write);
    Py_CLEAR(v->acknowledge); Py_CLEAR(v->window_done); Py_CLEAR(v->vmexit); Py_CLEAR(v->hypercall); Py_CLEAR(v->house);
    return 0;
}
static void vcpu_dealloc(Vcpu *v) {
    PyTypeObject *type = Py_TYPE(v);
    PyObject_GC_UnTrack(v);
    forget(v);
    PyMem_Free(v->debug.breakpoints);
    if (v->faststore) faststore_unregister(v->faststore);
    for (int i = 0; i < WINDOWS; i++)
        if (v->windows[i].view.obj) PyBuffer_Release(&v->windows[i].view);
    vcpu_clear(v);
    memory_free_regions(v);
    type->tp_free(v);
    Py_DECREF(type);
}

#define METHOD(name, flags) {#name, (PyCFunction)(void (*)(void))vcpu_##name, flags, NULL}
static PyMethodDef methods[] = {
    METHOD(run, METH_FASTCALL), METHOD(stop, METH_NOARGS), METHOD(kick, METH_NOARGS), METHOD(interrupt, METH_O),
    METHOD(window, METH_FASTCALL), METHOD(window_position, METH_O), METHOD(map_ram, METH_VARARGS), METHOD(map_io, METH_VARARGS),
    METHOD(unmap, METH_VARARGS), METHOD(invalidate, METH_FASTCALL), METHOD(translate, METH_O), METHOD(trail, METH_NOARGS),
    METHOD(detach, METH_NOARGS), METHOD(vectors, METH_NOARGS), METHOD(count, METH_NOARGS), METHOD(resume, METH_NOARGS),
    METHOD(block, METH_NOARGS), METHOD(enter_block, METH_VARARGS), METHOD(step_once, METH_VARARGS), METHOD(forget_step, METH_NOARGS), METHOD(breakpoints, METH_O), METHOD(watchpoints, METH_O), {NULL, NULL, 0, NULL}};
#define COUNTER(name) {#name, T_ULONGLONG, offsetof(Vcpu, name), READONLY, NULL}
static PyMemberDef members[] = {
    COUNTER(blocks), COUNTER(in_place), COUNTER(searches), COUNTER(n_exceptions), COUNTER(n_syscalls), COUNTER(n_in), COUNTER(n_out), COUNTER(n_window), COUNTER(n_interrupts),
    COUNTER(n_exits), COUNTER(n_loads), COUNTER(n_stores), COUNTER(run_ns), COUNTER(run_cycles), COUNTER(handler_cycles), {"error", T_INT, offsetof(Vcpu, error), READONLY, NULL},
    {"running", T_INT, offsetof(Vcpu, running), READONLY, NULL}, {"tsc_base", T_LONGLONG, offsetof(Vcpu, tsc_base), 0, NULL},
    {"tsc_end", T_LONGLONG, offsetof(Vcpu, tsc_end), 0, NULL},
    {"house", T_OBJECT, offsetof(Vcpu, house), 0, NULL},
    {"virtual_time", T_BOOL, offsetof(Vcpu, virtual_time), 0, NULL},
    {"halted", T_BOOL, offsetof(Vcpu, halted), 0, NULL}, {"in_block", T_BOOL, offsetof(Vcpu, debug.in_block), READONLY, NULL}, {"stop_reason", T_INT, offsetof(Vcpu, debug.reason), READONLY, NULL}, {"stop_watch", T_INT, offsetof(Vcpu, debug.hit_watch), READONLY, NULL}, {NULL, 0, 0, 0, NULL}};
static PyObject *get_units(Vcpu *v, void *closure) {
    (void)closure;
    return PyLong_FromLongLong(vcpu_units(v));
}
static int set_units(Vcpu *v, PyObject *value, void *closure) {
    (void)closure;
    int64_t units = value ? PyLong_AsLongLong(value) : 0;
    if (PyErr_Occurred()) return -1;
    v->end = units + v->left;
    return 0;
}
static PyGetSetDef getset[] = {{"units", (getter)get_units, (setter)set_units, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot slots[] = {{Py_tp_init, vcpu_init}, {Py_tp_dealloc, vcpu_dealloc}, {Py_tp_methods, methods}, {Py_tp_members, members},
    {Py_tp_getset, getset}, {Py_tp_new, PyType_GenericNew}, {Py_tp_traverse, vcpu_traverse}, {Py_tp_clear, vcpu_clear}, {0, NULL}};
static PyType_Spec spec = {"avmm.cpu.unicorn._shim.Vcpu", sizeof(Vcpu), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

/* configure(functions, offsets, instructions): the addresses and numbers that layout.py found, by name */
static bool take(PyObject *dict, const char *name, uint64_t *value) {
    PyObject *item = PyDict_GetItemString(dict, name);
    if (!item) {
        PyErr_Format(PyExc_KeyError, "%s", name);
        return false;
    }
    *value = PyLong_AsUnsignedLongLong(item);
    return !PyErr_Occurred();
}
static PyObject *configure(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *functions, *offsets, *numbers;
    if (!PyArg_ParseTuple(arguments, "O!O!O!", &PyDict_Type, &functions, &PyDict_Type, &offsets, &PyDict_Type, &numbers)) return NULL;
    uint64_t value;
#define FUNCTION(field, symbol) if (!take(functions, symbol, &value)) return NULL; memcpy((void *)&api.field, &value, sizeof value);
    FUNCTION(emu_start, "uc_emu_start") FUNCTION(emu_stop, "uc_emu_stop") FUNCTION(reg_read, "uc_reg_read") FUNCTION(hook_add, "uc_hook_add")
    FUNCTION(mmio_map, "uc_mmio_map") FUNCTION(mem_map_ptr, "uc_mem_map_ptr") FUNCTION(mem_unmap, "uc_mem_unmap")
    FUNCTION(vmem_translate, "uc_vmem_translate") FUNCTION(vmem_read, "uc_vmem_read")
    FUNCTION(do_interrupt, "x86_cpu_do_interrupt_x86_64") FUNCTION(do_interrupt_hardirq, "do_interrupt_x86_hardirq_x86_64")
    FUNCTION(raise_exception_err_ra, "raise_exception_err_ra_x86_64") FUNCTION(check_io[0], "helper_check_iob_x86_64")
    FUNCTION(check_io[1], "helper_check_iow_x86_64") FUNCTION(check_io[2], "helper_check_iol_x86_64")
    FUNCTION(cpu_interrupt_handler, "cpu_interrupt_handler") FUNCTION(ram_addr_from_host, "qemu_ram_addr_from_host_x86_64")
    FUNCTION(tb_invalidate_phys_range, "tb_invalidate_phys_range_x86_64") FUNCTION(tb_flush, "tb_flush_x86_64")
    FUNCTION(restore_state, "cpu_restore_state_x86_64") FUNCTION(loop_exit, "cpu_loop_exit_noexc_x86_64")
    FUNCTION(hook_del, "uc_hook_del")
#define OFFSET(field) if (!take(offsets, #field, &value)) return NULL; layout.field = value;
    OFFSET(engine_cpu) OFFSET(engine_tcg) OFFSET(invalidations) OFFSET(env) OFFSET(interrupt_request) OFFSET(icount_high) OFFSET(halted) OFFSET(cflags_next_tb) OFFSET(error_code) OFFSET(exception_is_int) OFFSET(exception_next_eip)
    OFFSET(sysenter) OFFSET(star) OFFSET(efer) OFFSET(tsc_aux)
    static const char *names[INSN_COUNT] = {"in", "out", "syscall", "sysenter", "rdtsc", "rdtscp"};
    for (int i = 0; i < INSN_COUNT; i++) {
        if (!take(numbers, names[i], &value)) return NULL;
        instructions[i] = (int)value;
    }
    Py_RETURN_NONE;
}
/* install_...(library handle) -> whether it is in place */
#define INSTALL(part, function) \
    static PyObject *install_##part(PyObject *module, PyObject *handle) { \
        (void)module; \
        void *library = PyLong_AsVoidPtr(handle); \
        return PyErr_Occurred() ? NULL : PyBool_FromLong(function(library)); \
    }
INSTALL(guard, deliver_guard) INSTALL(stored, deliver_stored)
INSTALL(fast_stores, faststore_install) INSTALL(globals, globals_install) INSTALL(blocks, blocks_install)
INSTALL(jumps, jumps_install)
#define INSTALLS(part) {"install_" #part, install_##part, METH_O, NULL}
static PyMethodDef functions[] = {{"configure", configure, METH_VARARGS, NULL}, INSTALLS(guard), INSTALLS(stored), INSTALLS(fast_stores),
                                  INSTALLS(globals), INSTALLS(blocks), INSTALLS(jumps), {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_shim", NULL, -1, functions, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC PyInit__shim(void) {
    PyObject *m = PyModule_Create(&module);
    if (m && PyModule_AddObject(m, "Vcpu", PyType_FromSpec(&spec))) Py_CLEAR(m);
    return m;
}
