/* Guest memory in pieces, for who moves bytes between it and a file: preadv(2) and pwritev(2) without an object for each page.
 *
 * Pieces are made of page numbers as the guest listed them (in a copy of its list), or of segments. They hold on to the memory and
 * are a sequence of memoryviews for who wants to look at them.
 *
 * The invariant: every piece lies in the memory it was made of. What does not is refused before anything is made.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#define PAGE 4096

typedef struct {
    PyObject_VAR_HEAD
    PyObject *memory;
    Py_buffer bytes;
    struct iovec piece[];
} Pieces;

static PyTypeObject pieces_type;

/* Pieces of a memory, room for `most` of them and none yet. */
static Pieces *new_pieces(PyObject *memory, Py_ssize_t most) {
    Pieces *self = PyObject_NewVar(Pieces, &pieces_type, most);
    if (!self)
        return NULL;
    Py_SET_SIZE(self, 0);
    self->memory = NULL;
    if (PyObject_GetBuffer(memory, &self->bytes, PyBUF_WRITABLE) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->memory = Py_NewRef(memory);
    return self;
}

static void pieces_dealloc(PyObject *object) {
    Pieces *self = (Pieces *)object;
    if (self->memory) {
        PyBuffer_Release(&self->bytes);
        Py_DECREF(self->memory);
    }
    PyObject_Free(self);
}

/* Append memory that the caller has checked: to the piece before it, if it goes on there. */
static void append(Pieces *self, Py_ssize_t at, Py_ssize_t length) {
    char *start = (char *)self->bytes.buf + at;
    Py_ssize_t count = Py_SIZE(self);
    if (count) {
        struct iovec *last = &self->piece[count - 1];
        if ((char *)last->iov_base + last->iov_len == start) {
            last->iov_len += length;
            return;
        }
    }
    self->piece[count] = (struct iovec){start, length};
    Py_SET_SIZE(self, count + 1);
}

PyDoc_STRVAR(of_pages_doc, "of_pages(memory, listed, at, offset, length, /)\n--\n\n"
    "Return the pieces of ``length`` bytes that begin ``offset`` bytes into the first of the pages whose numbers (64 bits each) are in "
    "``listed`` from ``at`` on. None when one of these pages is not in the memory.");

static PyObject *of_pages(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 5 || !PyBytes_Check(arguments[1])) {
        PyErr_SetString(PyExc_TypeError, "of_pages() takes a memory, bytes and three numbers");
        return NULL;
    }
    Py_ssize_t at = PyLong_AsSsize_t(arguments[2]);
    Py_ssize_t offset = PyLong_AsSsize_t(arguments[3]);
    Py_ssize_t length = PyLong_AsSsize_t(arguments[4]);
    if (PyErr_Occurred())
        return NULL;
    Py_ssize_t size = PyBytes_GET_SIZE(arguments[1]);
    if (at < 0 || at > size || offset < 0 || offset >= PAGE || length <= 0 || length > (size - at) / 8 * PAGE - offset) {
        PyErr_Format(PyExc_ValueError, "no page numbers for %zd bytes at %zd are in %zd bytes from %zd on", length, offset, size, at);
        return NULL;
    }
    Py_ssize_t pages = (offset + length + PAGE - 1) / PAGE;
    Pieces *self = new_pieces(arguments[0], pages);
    if (!self)
        return NULL;
    const char *listed = PyBytes_AS_STRING(arguments[1]) + at;
    uint64_t present = (uint64_t)self->bytes.len / PAGE;
    for (Py_ssize_t i = 0; i < pages; i++) {
        uint64_t number;
        memcpy(&number, listed + 8 * i, 8);
        if (number >= present) {
            Py_DECREF(self);
            Py_RETURN_NONE;
        }
        Py_ssize_t piece = length < PAGE - offset ? length : PAGE - offset;
        append(self, (Py_ssize_t)number * PAGE + offset, piece);
        length -= piece;
        offset = 0;
    }
    return (PyObject *)self;
}

PyDoc_STRVAR(of_segments_doc, "of_segments(memory, segments, /)\n--\n\n"
    "Return the pieces that a list of (address, length) names. None when not all of it is in the memory.");

static PyObject *of_segments(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "of_segments() takes a memory and segments");
        return NULL;
    }
    PyObject *segments = PySequence_Fast(arguments[1], "segments are a sequence");
    if (!segments)
        return NULL;
    Pieces *self = new_pieces(arguments[0], PySequence_Fast_GET_SIZE(segments));
    for (Py_ssize_t i = 0; self && i < PySequence_Fast_GET_SIZE(segments); i++) {
        long long at, length;
        PyObject *segment = PySequence_Fast_GET_ITEM(segments, i);
        if (!PyTuple_Check(segment) || !PyArg_ParseTuple(segment, "LL", &at, &length)) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "a segment is an address and a length");
            Py_CLEAR(self);
            if (!PyErr_ExceptionMatches(PyExc_OverflowError))
                break;
            PyErr_Clear();  /* no memory is so large */
            Py_DECREF(segments);
            Py_RETURN_NONE;
        }
        if (at < 0 || length < 0 || at > self->bytes.len || length > self->bytes.len - at) {
            Py_DECREF(self);
            Py_DECREF(segments);
            Py_RETURN_NONE;
        }
        append(self, at, length);
    }
    Py_DECREF(segments);
    return (PyObject *)self;
}

PyDoc_STRVAR(copy_doc, "copy(memory, at, length, /)\n--\n\nReturn a copy of ``length`` bytes of the memory. ValueError when it has not so many there.");

static PyObject *copy(PyObject *module, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "copy() takes a memory and two numbers");
        return NULL;
    }
    Py_ssize_t at = PyLong_AsSsize_t(arguments[1]);
    Py_ssize_t length = PyLong_AsSsize_t(arguments[2]);
    Py_buffer bytes;
    if (PyErr_Occurred() || PyObject_GetBuffer(arguments[0], &bytes, PyBUF_SIMPLE) < 0)
        return NULL;
    PyObject *copied = NULL;
    if (at < 0 || length < 0 || at > bytes.len || length > bytes.len - at)
        PyErr_Format(PyExc_ValueError, "%zd bytes from %zd on are not in %zd bytes", length, at, bytes.len);
    else
        copied = PyBytes_FromStringAndSize((char *)bytes.buf + at, length);
    PyBuffer_Release(&bytes);
    return copied;
}

/* preadv2(2) or pwritev2(2) of all pieces: again after a signal whose handler raised nothing, without the interpreter meanwhile. */
typedef ssize_t Move(int file, const struct iovec *piece, int count, off_t offset, int flags);
static PyObject *move(Pieces *self, Move *by, PyObject *file_, PyObject *offset_, PyObject *flags_) {
    long file = PyLong_AsLong(file_);
    long long offset = PyLong_AsLongLong(offset_);
    long flags = flags_ ? PyLong_AsLong(flags_) : 0;
    if (PyErr_Occurred())
        return NULL;
    if (offset < 0) { /* to these two calls -1 is where the file stands */
        errno = EINVAL;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    ssize_t done;
    do {
        Py_BEGIN_ALLOW_THREADS
        done = by((int)file, self->piece, (int)Py_SIZE(self), offset, (int)flags);
        Py_END_ALLOW_THREADS
    } while (done < 0 && errno == EINTR && !PyErr_CheckSignals());
    if (done < 0)
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromSsize_t(done);
}

PyDoc_STRVAR(preadv_doc, "preadv(file, offset, flags=0, /)\n--\n\nFill the pieces from a file; see os.preadv.");

static PyObject *pieces_preadv(PyObject *object, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2 && count != 3) {
        PyErr_SetString(PyExc_TypeError, "preadv() takes a file, an offset and flags");
        return NULL;
    }
    return move((Pieces *)object, preadv2, arguments[0], arguments[1], count == 3 ? arguments[2] : NULL);
}

PyDoc_STRVAR(pwritev_doc, "pwritev(file, offset, /)\n--\n\nWrite the pieces to a file; see os.pwritev.");

static PyObject *pieces_pwritev(PyObject *object, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "pwritev() takes a file and an offset");
        return NULL;
    }
    return move((Pieces *)object, pwritev2, arguments[0], arguments[1], NULL);
}

PyDoc_STRVAR(segments_doc, "segments()\n--\n\nReturn (address, length) of each piece.");

static PyObject *pieces_segments(PyObject *object, PyObject *unused) {
    Pieces *self = (Pieces *)object;
    PyObject *list = PyList_New(Py_SIZE(self));
    for (Py_ssize_t i = 0; list && i < Py_SIZE(self); i++) {
        Py_ssize_t at = (char *)self->piece[i].iov_base - (char *)self->bytes.buf;
        PyObject *segment = Py_BuildValue("(nn)", at, (Py_ssize_t)self->piece[i].iov_len);
        if (!segment)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, segment);
    }
    return list;
}

static Py_ssize_t pieces_length(PyObject *object) {
    return Py_SIZE(object);
}

static PyObject *pieces_item(PyObject *object, Py_ssize_t i) {
    Pieces *self = (Pieces *)object;
    if (i < 0 || i >= Py_SIZE(self)) {
        PyErr_SetString(PyExc_IndexError, "there are not so many pieces");
        return NULL;
    }
    Py_ssize_t at = (char *)self->piece[i].iov_base - (char *)self->bytes.buf;
    return PySequence_GetSlice(self->memory, at, at + (Py_ssize_t)self->piece[i].iov_len);
}

static PyMethodDef pieces_methods[] = {
    {"preadv", (PyCFunction)(void (*)(void))pieces_preadv, METH_FASTCALL, preadv_doc},
    {"pwritev", (PyCFunction)(void (*)(void))pieces_pwritev, METH_FASTCALL, pwritev_doc},
    {"segments", pieces_segments, METH_NOARGS, segments_doc},
    {NULL, NULL, 0, NULL},
};

static PySequenceMethods pieces_sequence = {.sq_length = pieces_length, .sq_item = pieces_item};

static PyTypeObject pieces_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "avmm._pieces.Pieces",
    .tp_doc = PyDoc_STR("Guest memory in pieces; a sequence of memoryviews."),
    .tp_basicsize = sizeof(Pieces),
    .tp_itemsize = sizeof(struct iovec),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_SEQUENCE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = pieces_dealloc,
    .tp_as_sequence = &pieces_sequence,
    .tp_methods = pieces_methods,
};

static PyMethodDef functions[] = {
    {"copy", (PyCFunction)(void (*)(void))copy, METH_FASTCALL, copy_doc},
    {"of_pages", (PyCFunction)(void (*)(void))of_pages, METH_FASTCALL, of_pages_doc},
    {"of_segments", (PyCFunction)(void (*)(void))of_segments, METH_FASTCALL, of_segments_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "avmm._pieces",
    .m_doc = PyDoc_STR("Guest memory in pieces, for who moves bytes between it and a file."),
    .m_size = -1,
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__pieces(void) {
    if (PyType_Ready(&pieces_type) < 0)
        return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddObjectRef(module, "Pieces", (PyObject *)&pieces_type) < 0)
        Py_CLEAR(module);
    return module;
}
