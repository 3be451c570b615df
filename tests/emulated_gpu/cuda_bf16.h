#pragma once
#include "gpu.h"
