// The target is header-only; this file exists so that the build system has something to compile,
// and so that the layout assertions of the header are checked by a C compiler at every build.
#include "CFUSE.h"
