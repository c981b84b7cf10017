/* Makes a library of ops importable as a Python module: importing it registers the ops. Limited API only. */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, MODULE_NAME, NULL, -1, NULL, NULL, NULL, NULL, NULL};
PyMODINIT_FUNC MODULE_INIT(void);
PyMODINIT_FUNC MODULE_INIT(void) { return PyModule_Create(&definition); }
