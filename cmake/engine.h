// Installed as hotset/engine.h: the one header a program includes.
#pragma once

#include "core/engine.h"
